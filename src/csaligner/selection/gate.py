"""Gate for training: the trained change is scaled, and accepted only if it improves held-out pairs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner, align
from csaligner.distributed.processes import on_main
from csaligner.types import PairedFeatures

from .folds import Difference, complement, evenly, group_folds, rows_of
from .score import Prefer, score_per_image

SCALES = (0.25, 0.5, 0.75, 1.0)  # of the trained change; 0 is the untrained start
LEAST_IMAGES, LEAST_GROUPS = 200, 5  # with fewer images or groups, training is skipped
MANY_IMAGES = 2000  # from here, one held-out fifth; below, three folds
ERRORS = 2.0  # standard errors that the gain must exceed
HELD_IMAGES = 1000  # maximum number scored per fold
_HIDDEN = re.compile(r"blocks\.\d+\.0\.")  # the first layer of a residual block: has no effect while the last is 0


@dataclass(frozen=True)
class GateChoice:
    """scale: of the trained change, 0 if training is rejected; gains: held-out score at each scale minus that of the
    start, in points, with standard errors over images; images: number held out; seconds: duration."""

    scale: float
    gains: Mapping[float, Difference]
    images: int
    seconds: float

    @property
    def best(self) -> Difference | None:
        """Gain at the best scale, accepted or not; None if training was skipped."""
        return max(self.gains.values(), key=lambda gain: gain.mean, default=None)

    def record(self) -> dict[str, Any]:
        """Return the choice for JSON."""
        gains = {str(s): {"gain": round(g.mean, 6), "error": round(g.error, 6)} for s, g in self.gains.items()}
        return {"scale": self.scale, "gains": gains, "images": self.images, "seconds": round(self.seconds, 2)}

    @classmethod
    def of_record(cls, value: Mapping[str, Any]) -> GateChoice:
        """Inverse of `record`."""
        gains = {float(s): Difference(float(g["gain"]), float(g["error"])) for s, g in value["gains"].items()}
        return cls(float(value["scale"]), gains, int(value["images"]), float(value["seconds"]))


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

    start: pairs -> untrained model; train: trains the model in place. Groups are not split over folds. Stops after the
    first fold if no scale improves. With fewer than 200 images (or 5 groups) training is rejected without trial.
    """
    began, n = time.perf_counter(), len(features.image)
    if n < LEAST_IMAGES or (groups is not None and len(set(groups)) < LEAST_GROUPS):
        return GateChoice(0.0, {}, 0, 0.0)
    folds = group_folds(n, 5, seed, groups)[:1] if n >= MANY_IMAGES else group_folds(n, 3, seed, groups)
    found: list[dict[float, Tensor]] = []
    for held in folds:
        rest = rows_of(features, complement(n, held))
        model = start(rest)
        before = snapshot(model)
        train(model, rest)
        seen = rows_of(features, held[evenly(len(held), HELD_IMAGES)])
        found.append(on_main(lambda: scale_gains(model, before, seen, prefer)))  # noqa: B023  (called at once)
        if all(float(gain.mean()) <= 0 for gain in found[0].values()):
            break
    pooled = {scale: torch.cat([fold[scale] for fold in found]) for scale in SCALES}
    return _choice(pooled, time.perf_counter() - began)


def gate_by_validation(
    model: Aligner, before: Mapping[str, Tensor], held: PairedFeatures, prefer: Prefer = "both"
) -> GateChoice:
    """Choose the scale of a trained model on held-out pairs. before: snapshot of the untrained model."""
    began = time.perf_counter()
    gains = scale_gains(model, before, rows_of(held, evenly(len(held.image), HELD_IMAGES)), prefer)
    return _choice(gains, time.perf_counter() - began)


def snapshot(model: Aligner) -> dict[str, Tensor]:
    """Return a copy of the adapters' state."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def set_scale(model: Aligner, before: Mapping[str, Tensor], scale: float) -> None:
    """Set the model to before + scale * (trained - before), in place.

    First layers of residual blocks are not scaled: the last layers start at 0, so scaling them is enough.
    """
    if scale == 1:
        return
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point() and not _HIDDEN.search(name):
            state[name] = before[name] + scale * (value - before[name])
    model.load_state_dict(state)


def scale_gains(
    model: Aligner, before: Mapping[str, Tensor], held: PairedFeatures, prefer: Prefer = "both"
) -> dict[float, Tensor]:
    """Return the gain of each held-out image at each scale over the start, (n,) each; the model stays trained."""
    after = snapshot(model)
    scores = {}
    for scale in (0.0, *SCALES):
        model.load_state_dict(after)
        set_scale(model, before, scale)
        scores[scale] = score_per_image(align(model, held), prefer)
    model.load_state_dict(after)
    return {scale: scores[scale] - scores[0.0] for scale in SCALES}


def _choice(gains: Mapping[float, Tensor], seconds: float) -> GateChoice:
    found = {scale: Difference.of(values) for scale, values in gains.items()}
    best = max(found, key=lambda scale: found[scale].mean)
    accepted = found[best].mean > ERRORS * found[best].error
    return GateChoice(best if accepted else 0.0, found, len(gains[best]), seconds)
