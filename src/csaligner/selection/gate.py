"""Gate for training: the trained change is scaled, and accepted only if it improves held-out pairs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner, align
from csaligner.distributed.processes import on_main
from csaligner.evaluation.held_out import HeldOut
from csaligner.paired_features import rows_of
from csaligner.types import PairedFeatures

from .folds import Difference, complement, evenly, group_folds
from .score import Prefer, score_and_recall

SCALES = (0.25, 0.5, 0.75, 1.0)  # of the trained change; 0 is the untrained start
LEAST_IMAGES, LEAST_GROUPS = 200, 5  # with fewer images or groups, training is skipped
MANY_IMAGES = 2000  # from here, one held-out fifth; below, three folds
ERRORS = 2.0  # standard errors that the gain must exceed
LITTLE = 2.0  # points: a smaller gain of training is not worth its time in a warm re-fit
HELD_TRAINING, VALIDATION = "held-out training", "validation"  # which images were held out, in words
HELD_IMAGES = 1000  # maximum number scored per fold
_HIDDEN = re.compile(r"(blocks\.\d+\.)0\.")  # the first layer of a residual block; the last is layer 3


@dataclass(frozen=True)
class GateChoice:
    """scale: of the trained change, 0 if training is rejected; gains: held-out score at each scale minus that of the
    start, in points, with standard errors over images; images: number held out; seconds: duration; recalls: recall@10
    from captions to images at each scale, mean over folds; searched: images that were searched, the smallest fold;
    part: which images were held out, in words."""

    scale: float
    gains: Mapping[float, Difference]
    images: int
    seconds: float
    recalls: Mapping[float, float] = field(default_factory=dict)
    searched: int = 0
    part: str = HELD_TRAINING

    @property
    def best(self) -> Difference | None:
        """Gain at the best scale, accepted or not; None if training was skipped."""
        return max(self.gains.values(), key=lambda gain: gain.mean, default=None)

    @property
    def held_out(self) -> HeldOut | None:
        """Recall@10 on the held-out pairs at the chosen scale, beside the untrained start; None if training was
        skipped. The same pairs chose the scale, which favours it slightly."""
        if not self.recalls:
            return None
        if self.scale == 0:
            return HeldOut(self.searched, self.recalls[0.0], used="untrained", part=self.part)
        return HeldOut(self.searched, self.recalls[self.scale], {"untrained": self.recalls[0.0]}, part=self.part)

    def record(self) -> dict[str, Any]:
        """Return the choice for JSON."""
        gains = {str(s): {"gain": round(g.mean, 6), "error": round(g.error, 6)} for s, g in self.gains.items()}
        choice = {"scale": self.scale, "gains": gains, "images": self.images, "seconds": round(self.seconds, 2)}
        recalls = {str(scale): round(value, 6) for scale, value in self.recalls.items()}
        part = {} if self.part == HELD_TRAINING else {"part": self.part}
        return choice | {"recalls": recalls, "searched": self.searched} | part

    @classmethod
    def of_record(cls, value: Mapping[str, Any]) -> GateChoice:
        """Inverse of `record`."""
        gains = {float(s): Difference(float(g["gain"]), float(g["error"])) for s, g in value["gains"].items()}
        recalls = {float(scale): float(recall) for scale, recall in value.get("recalls", {}).items()}
        images, seconds = int(value["images"]), float(value["seconds"])
        searched, part = int(value.get("searched", 0)), str(value.get("part", HELD_TRAINING))
        return cls(float(value["scale"]), gains, images, seconds, recalls, searched, part)


def again(gate: GateChoice) -> GateChoice:
    """Return an earlier choice for other pairs: training is repeated only if it gained more than LITTLE points."""
    return gate if gate.best is None or gate.best.mean > LITTLE else replace(gate, scale=0.0)


def gate_by_folds(
    features: PairedFeatures,
    start: Callable[[PairedFeatures], Aligner],
    train: Callable[[Aligner, PairedFeatures], None],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    prefer: Prefer = "both",
) -> GateChoice:
    """Train on part of the pairs and score the rest: three folds, or one held-out fifth from 2,000 images.

    start: pairs -> untrained model; train: trains the model in place and may overwrite its pairs. Groups are not split
    over folds. Stops after the first fold if no scale improves. With fewer than 200 images (or 5 groups) training is
    rejected without trial.
    """
    began, n = time.perf_counter(), len(features.image)
    if n < LEAST_IMAGES or (groups is not None and len(set(groups)) < LEAST_GROUPS):
        return GateChoice(0.0, {}, 0, 0.0)
    folds = group_folds(n, 5, seed, groups)[:1] if n >= MANY_IMAGES else group_folds(n, 3, seed, groups)
    found: list[Scored] = []
    for held in folds:
        rest = rows_of(features, complement(n, held))
        model = start(rest)
        before = snapshot(model)
        train(model, rest)
        seen = rows_of(features, held[evenly(len(held), HELD_IMAGES)])
        found.append(on_main(lambda: scored(model, before, seen, prefer)))  # noqa: B023  (called at once)
        if all(float(gain.mean()) <= 0 for gain in found[0].gains.values()):
            break
    return _choice(found, time.perf_counter() - began)


def gate_by_validation(
    model: Aligner, before: Mapping[str, Tensor], held: PairedFeatures, prefer: Prefer = "both"
) -> GateChoice:
    """Choose the scale of a trained model on held-out pairs. before: snapshot of the untrained model."""
    began = time.perf_counter()
    seen = rows_of(held, evenly(len(held.image), HELD_IMAGES))
    return replace(_choice([scored(model, before, seen, prefer)], time.perf_counter() - began), part=VALIDATION)


def snapshot(model: Aligner) -> dict[str, Tensor]:
    """Return a copy of the adapters' state."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def set_scale(model: Aligner, before: Mapping[str, Tensor], scale: float) -> None:
    """Set the model to before + scale * (trained - before), in place.

    First layers of residual blocks whose last layers start at 0 are not scaled: scaling the last layers is enough.
    """
    if scale == 1:
        return
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point() and not _has_no_effect(name, before):
            state[name] = before[name] + scale * (value - before[name])
    model.load_state_dict(state)


def _has_no_effect(name: str, before: Mapping[str, Tensor]) -> bool:
    """Whether the parameter is of the first layer of a residual block whose last layer is 0."""
    found = _HIDDEN.search(name)
    return found is not None and not before[f"{name[: found.end(1)]}3.weight"].any()


@dataclass(frozen=True)
class Scored:
    """Held-out pairs at each scale. gains: of each image over the start, (n,) each; recalls: recall@10 from captions to
    images, also at scale 0."""

    gains: Mapping[float, Tensor]
    recalls: Mapping[float, float]


def scored(model: Aligner, before: Mapping[str, Tensor], held: PairedFeatures, prefer: Prefer = "both") -> Scored:
    """Score held-out pairs at each scale; the model stays trained."""
    after = snapshot(model)
    scores, recalls = {}, {}
    for scale in (0.0, *SCALES):
        model.load_state_dict(after)
        set_scale(model, before, scale)
        scores[scale], recalls[scale] = score_and_recall(align(model, held), prefer)
    model.load_state_dict(after)
    return Scored({scale: scores[scale] - scores[0.0] for scale in SCALES}, recalls)


def _choice(folds: Sequence[Scored], seconds: float) -> GateChoice:
    pooled = {scale: torch.cat([fold.gains[scale] for fold in folds]) for scale in SCALES}
    found = {scale: Difference.of(values) for scale, values in pooled.items()}
    best = max(found, key=lambda scale: found[scale].mean)
    scale = best if found[best].mean > ERRORS * found[best].error else 0.0
    recalls = {s: sum(fold.recalls[s] for fold in folds) / len(folds) for s in folds[0].recalls}
    searched = min(len(fold.gains[best]) for fold in folds)
    return GateChoice(scale, found, len(pooled[best]), seconds, recalls, searched)
