"""Schedules of numbers over a run, and the learning rate factor."""

from __future__ import annotations

import math

from csaligner.config import Schedule


def value_at(number: float | Schedule, progress: float) -> float:
    """Return the value at `progress` (0 to 1): start + (end - start) * s, s = p or (1 - cos(pi * p)) / 2."""
    if not isinstance(number, Schedule):
        return number
    s = progress if number.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return number.start + (number.end - number.start) * s


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Return the learning rate factor at `step` (from 0): linear over `warmup` steps, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
