"""Fitting an aligner to pairs in memory: start, training and gate, as configured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner, fixed_modality
from csaligner.adapters.untrained import PairMoments, untrained_family
from csaligner.config import TrainConfig
from csaligner.training.samplers import PairSampler
from csaligner.training.trainer import Hooks, Report, Trainer, silent
from csaligner.training.training_data import with_unpaired
from csaligner.types import PairedFeatures

from .gate import GateChoice, gate_by_folds, set_scale, snapshot
from .start import StartChoice, choose_start


@dataclass(frozen=True)
class Selection:
    """start: choice of the untrained alignment, None if fixed by the config; gate: choice of the gate, None without."""

    start: StartChoice | None
    gate: GateChoice | None

    def record(self) -> dict[str, Any]:
        """Return the selection for JSON."""
        return {name: choice.record() for name, choice in (("start", self.start), ("gate", self.gate)) if choice}

    @property
    def line(self) -> str:
        """Summary in one line."""
        start = f"untrained {self.start.label}" if self.start else "untrained start"
        if self.gate is None:
            return f"start: {start}"
        gain = self.gate.best
        if gain is None:
            return f"{start} kept: too few pairs to measure a gain by training"
        measured = f"training gained {gain.mean:.1f} +- {gain.error:.1f} points on {self.gate.images} held-out images"
        if self.gate.scale == 0:
            return f"{start} kept: {measured}"
        return f"{start}, then {self.gate.scale:.0%} of the trained change: {measured}"


@dataclass(frozen=True)
class Selecting:
    """Settings of a fit. unpaired: features of unpaired images and texts; groups: of the images, kept in one fold."""

    config: TrainConfig
    unpaired: tuple[Tensor | None, Tensor | None] = (None, None)
    groups: Sequence[str] | None = None
    report: Report = silent

    def fit(self, features: PairedFeatures, *, gate: bool) -> tuple[Aligner, Selection | None]:
        """Fit to pairs; returns the aligner in evaluation mode and the selection, None if there was none."""
        c = self.config
        torch.manual_seed(c.seed)
        choice = self._start(features) if c.start.kind == "chosen" else None
        model = Aligner.fit_start(features, c, starts=choice.starts if choice else None)
        if not gate:
            self._train(model, features, self.report)
            return model, Selection(choice, None) if choice else None
        gated = gate_by_folds(
            features,
            lambda pairs: Aligner.fit_start(pairs, c, starts=self._again(pairs, choice)),
            lambda held, pairs: self._train(held, pairs, silent),
            groups=self.groups,
            seed=c.seed,
        )
        if gated.scale > 0:
            before = snapshot(model)
            torch.manual_seed(c.seed)
            self._train(model, features, self.report)
            set_scale(model, before, gated.scale)
        return model.eval(), Selection(choice, gated)

    def _start(self, features: PairedFeatures) -> StartChoice:
        return choose_start(features, self.config, unpaired=self.unpaired, groups=self.groups, seed=self.config.seed)

    def _again(self, pairs: PairedFeatures, choice: StartChoice | None) -> Any:
        """Return the chosen candidate fitted to other pairs."""
        if choice is None:
            return None
        moments = PairMoments.of(pairs).with_unpaired(*self.unpaired)
        return untrained_family(moments, self.config.dim, fixed_modality(self.config)).candidates[choice.label]

    def _train(self, model: Aligner, features: PairedFeatures, report: Report) -> None:
        c = self.config
        pairs = PairSampler(features, c.batch_size, c.captions, c.seed)
        sampler = with_unpaired(pairs, *self.unpaired, c.unpaired, c.seed)
        Trainer(model, sampler, c, hooks=Hooks(report=report)).fit()
