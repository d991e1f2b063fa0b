"""Selection in a run folder: the untrained model before training, and the gate before or after it.

The start is chosen on the training pairs. The gate uses the validation pairs if there are at least VALIDATION_IMAGES
images of them: one training run, no further cost. With fewer, their standard error is too large, and the gate refits
and trains on folds of the training pairs, before the run. Test pairs are never used. A resumed run reads both choices
from selection.json and checkpoints/start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from csaligner.adapters.aligner import Aligner
from csaligner.config import TrainConfig
from csaligner.distributed.processes import is_main, on_main
from csaligner.paired_features import rows_of, spaced
from csaligner.run_folder import GATED_MODEL, START_MODEL
from csaligner.store.read_tokens import read_tokens
from csaligner.store.store import Store
from csaligner.training.training_data import TrainingData, evenly_read, groups_of, joined, some_pairs
from csaligner.types import PairedFeatures

from .fit import Selecting
from .gate import gate_by_validation, set_scale, snapshot
from .photos import Encoders
from .selection import Selection, note_of, read_selection, write_selection

VALIDATION_IMAGES = 1000


@dataclass(frozen=True)
class Untrained:
    """The model before training. selection: so far, None if nothing is selected; waits: the gate follows training."""

    model: Aligner
    selection: Selection | None
    waits: bool
    before: Mapping[str, Tensor]

    @property
    def trains(self) -> bool:
        """Whether to train: not if the gate rejected it on folds."""
        gate = self.selection.gate if self.selection else None
        return self.waits or gate is None or gate.scale > 0


def untrained(
    data: TrainingData,
    config: TrainConfig,
    out: Path,
    val_images: int,
    *,
    resumes: bool,
    like: Selection | None = None,
) -> Untrained:
    """Return the untrained model of a run and its selection, recorded in `out`.

    resumes: training resumes from a given checkpoint folder, so it is not gated. like: an earlier selection, whose
    choices are used again.
    """
    pairs = some_pairs(data.pairs, "train", config.start.images, config.reads_states)
    selecting = replace(_selecting(data, config), like=like)
    if config.start.kind != "chosen" and not config.gates:
        model = selecting.start(pairs, None)
        return Untrained(model, None, False, {})
    decided = like is not None and like.gate is not None
    waits = config.gates and not resumes and not decided and val_images >= VALIDATION_IMAGES
    found = on_main(lambda: read_selection(out) if (out / START_MODEL).is_dir() else None)
    if found is not None:
        model = Aligner.load(out / START_MODEL)
        return Untrained(model, found, waits, snapshot(model))
    choice = on_main(lambda: selecting.choose(pairs))
    model = selecting.start(pairs, choice)
    note = "training resumes from another run, so it is not gated" if resumes and config.gates else note_of(config)
    gates = config.gates and not waits and not resumes
    gate = selecting.gate(_with_tokens(pairs, data.pairs, config), choice) if gates else None
    found = Selection(choice, gate, note)
    if is_main():
        model.save(out / START_MODEL)
        write_selection(out, found)
    return Untrained(model, found, waits, snapshot(model))


def gated(start: Untrained, val: PairedFeatures | None, config: TrainConfig, out: Path) -> Selection | None:
    """Apply the gate to the trained model, in place, and record it; returns the selection.

    val: the validation pairs, on the main process.
    """
    model, selection = start.model, start.selection
    if selection is None:
        return None
    if start.waits and selection.gate is None:
        gate = on_main(lambda: gate_by_validation(model, start.before, _given(val), config.start.prefer))
        selection = replace(selection, gate=gate)
    if selection.gate is None or not start.trains:
        return selection
    set_scale(model, start.before, selection.gate.scale)
    done = selection == start.selection and (out / GATED_MODEL).is_dir()
    if is_main() and selection.gate.scale < 1 and not done:
        model.save(out / GATED_MODEL)
    if is_main() and selection != start.selection:
        write_selection(out, selection)
    return selection


def start_of(run: Path, pairs: PairedFeatures, config: TrainConfig) -> Aligner:
    """Return the untrained aligner of a finished run; runs without a record of it are fitted again."""
    if (run / START_MODEL).is_dir():
        return Aligner.load(run / START_MODEL)
    selecting = Selecting(config)
    return selecting.start(pairs, selecting.choose(pairs)).eval()


def _selecting(data: TrainingData, config: TrainConfig) -> Selecting:
    images = evenly_read(joined(data.unpaired_images, "image"), config.start.images)
    texts = evenly_read(joined(data.unpaired_texts, "text"), config.start.images)
    groups = groups_of(data.pairs, "train", config.start.images)
    return Selecting(config, (images, texts), groups, encoders=_encoders(data))


def _encoders(data: TrainingData) -> Encoders:
    return data.pairs.image_fingerprint, data.pairs.text_fingerprint


def _with_tokens(pairs: PairedFeatures, store: Store, config: TrainConfig) -> PairedFeatures:
    """Add the tokens that the objective requires; `pairs` may be a part of the train split."""
    if not config.objective.sees_tokens:
        return pairs
    whole = replace(some_pairs(store, "train", None), tokens=read_tokens(store, "train"))
    return rows_of(whole, spaced(len(whole.image), len(pairs.image)))


def _given(val: PairedFeatures | None) -> PairedFeatures:
    assert val is not None  # on the main process
    return val
