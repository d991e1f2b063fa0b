"""Fitting an aligner to pairs in memory: start, training and gate, as configured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from csaligner.adapters.aligner import FITTED, Aligner, fixed_modality
from csaligner.adapters.mapped import MappedAligner
from csaligner.adapters.span import fit_family
from csaligner.adapters.start import fit_starts
from csaligner.adapters.untrained import Starts
from csaligner.config import TrainConfig
from csaligner.paired_features import rows_of, spaced
from csaligner.training.samplers import PairSampler
from csaligner.training.trainer import Hooks, Report, RunOptions, Trainer, silent
from csaligner.training.training_data import with_unpaired
from csaligner.types import PairedFeatures

from .gate import GateChoice, again, gate_by_folds, set_scale, snapshot
from .photos import CLASS_NAMES, Encoders, by_class_names, photo_aligner
from .selection import Selection, note_of
from .start import StartChoice, choose_start


@dataclass(frozen=True)
class Selecting:
    """Settings of a fit. unpaired: features of unpaired images and texts; groups: of the images, kept in one fold;
    encoders: fingerprints, if known; like: an earlier selection, whose choices are used again without trials (training
    that gained little is not repeated, see gate.again). starts: the closed-form start of these pairs (closed_form),
    if it was fitted before; used where no start is chosen."""

    config: TrainConfig
    unpaired: tuple[Tensor | None, Tensor | None] = (None, None)
    groups: Sequence[str] | None = None
    report: Report = silent
    encoders: Encoders = (None, None)
    like: Selection | None = None
    starts: Starts | None = None

    def closed_form(self, features: PairedFeatures) -> Starts | None:
        """Return the closed-form start of the config for these pairs; None if it depends on more than `config.start`
        and the output dimension."""
        c = self.config
        adapters = {c.image_adapter.name, c.text_adapter.name}
        if c.start.kind in {"chosen", "class_names", "random"} or adapters & set(FITTED):
            return None
        return fit_starts(self._few(features), c.start, c.dim, fixed_modality(c), self._unpaired)

    def fit(self, features: PairedFeatures) -> tuple[Aligner, Selection | None]:
        """Fit to pairs; returns the aligner in evaluation mode and the selection, None if nothing was to select."""
        c = self.config
        torch.manual_seed(c.seed)
        choice = self.choose(features)
        model = self.start(features, choice)
        gate = self.gate(features, choice) if c.gates else None
        if gate is None or gate.scale > 0:
            before = snapshot(model)
            torch.manual_seed(c.seed)
            self._train(model, features, Hooks(report=self.report))
            if gate is not None:
                set_scale(model, before, gate.scale)
        selects = c.start.kind == "chosen" or c.gates
        return model.eval(), Selection(choice, gate, note_of(c)) if selects else None

    def choose(self, features: PairedFeatures) -> StartChoice | None:
        """Choose the start, if the config does."""
        c = self.config
        if not c.chooses_start:
            return None
        if self.like is not None and self.like.start is not None:
            return self._again(features, self.like.start)
        rows = spaced(len(features.image), c.start.images)
        groups = None if self.groups is None else [self.groups[row] for row in rows.tolist()]
        few = self._few(features)
        bundled = photo_aligner(few, c, self.encoders)
        return choose_start(few, c, unpaired=self._unpaired, groups=groups, seed=c.seed, bundled=bundled)

    def start(self, pairs: PairedFeatures, choice: StartChoice | None) -> Aligner:
        """Return the untrained model of a choice, or of the config if nothing was chosen."""
        bundled = choice is not None and choice.label == CLASS_NAMES
        config = by_class_names(self.config) if bundled else self.config
        few = self._few(pairs)
        return Aligner.fit_start(few, config, self.encoders, choice.starts if choice else self.starts, self._unpaired)

    def gate(self, features: PairedFeatures, choice: StartChoice | None) -> GateChoice:
        """Gate by folds: refit the chosen start, train and score held-out pairs. See gate_by_folds."""
        c = self.config
        if self.like is not None and self.like.gate is not None:
            return again(self.like.gate)
        return gate_by_folds(
            features,
            lambda pairs: self.start(pairs, self._again(pairs, choice)),
            lambda held, pairs: self._train(held, pairs, Hooks(warn=None), reuse=True),
            groups=self.groups,
            seed=c.seed,
            prefer=c.start.prefer,
        )

    @property
    def _unpaired(self) -> tuple[Tensor | None, Tensor | None]:
        """Unpaired rows for the start, evenly spaced, at most start.images of a modality."""
        most = self.config.start.images
        image, text = (x if x is None or len(x) <= most else x[spaced(len(x), most)] for x in self.unpaired)
        return image, text

    def _few(self, pairs: PairedFeatures) -> PairedFeatures:
        """Return the pairs of evenly spaced images, at most start.images."""
        most = self.config.start.images
        return pairs if len(pairs.image) <= most else rows_of(pairs, spaced(len(pairs.image), most))

    def _again(self, pairs: PairedFeatures, choice: StartChoice | None) -> StartChoice | None:
        """Return the choice with the candidate fitted to other pairs."""
        if choice is None or choice.label == CLASS_NAMES:
            return choice
        c = self.config
        family = fit_family(self._few(pairs), self._unpaired, c.dim, fixed_modality(c), few=choice.few)
        return replace(choice, starts=family.candidates[choice.label])

    def _train(self, model: Aligner, features: PairedFeatures, hooks: Hooks, *, reuse: bool = False) -> None:
        """Train a model in place. reuse: the features may be overwritten."""
        c, unpaired, module = self.config, self.unpaired, cast(nn.Module, model)
        plain = c.epochs != 0 and c.precision == "fp32" and features.tokens is None and features.states is None
        if plain and MappedAligner.saves_time(model, features.image, features.text, *unpaired):
            module = mapped = MappedAligner(model)
            image = mapped.map_rows(0, features.image, reuse=reuse)
            text = mapped.map_rows(1, features.text, reuse=reuse)
            features = replace(features, image=cast(Tensor, image), text=cast(Tensor, text))
            unpaired = mapped.map_rows(0, unpaired[0]), mapped.map_rows(1, unpaired[1])
        pairs = PairSampler(features, c.batch_size, c.captions, c.seed)
        sampler = with_unpaired(pairs, *unpaired, c.unpaired, c.seed)
        options = RunOptions(workers=0)  # the rows are in memory: there is nothing to read ahead
        Trainer(module, sampler, c, hooks=hooks, options=options).fit()
