"""The bandwidth sigma of the kernel: a number, the median rule, or tied to the temperature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError, check_choice, check_positive

# Unit rows lie at most 2 apart; 0.5 is the width that trains well on CLIP features at every temperature
# tried.
DEFAULT_BANDWIDTH = 0.5
RULES = ("median", "temperature")
MEDIAN_ROWS = 2048
SMALLEST, LARGEST = 1e-15, 1e15  # of sigma

Bandwidth = float | Tensor | str


def resolve_bandwidth(spec: Bandwidth, x: Tensor, y: Tensor, logit_scale: Any = None) -> float:
    """sigma of k(a, b) = exp(-|a - b|^2 / (2 sigma^2)), in the unit of the features. No gradient runs through
    it.

    spec: a number above 0; "median": the median distance between rows of the two samples taken together,
    divided by sqrt(2), so that k = 1/e there (over at most 2,048 rows at even steps: the same on every rank
    and in every run); "temperature": sigma^2 = 1 / logit_scale. x: (N, d), y: (M, d). Raises InputError, also for
    a sigma whose square float32 does not hold.
    """
    sigma = _resolve(spec, x, y, logit_scale)
    if not SMALLEST <= sigma <= LARGEST:
        raise InputError(f"bandwidth: got {sigma:g}, wanted {SMALLEST:g} to {LARGEST:g}; scale the features")
    return sigma


def _resolve(spec: Bandwidth, x: Tensor, y: Tensor, logit_scale: Any) -> float:
    if isinstance(spec, str):
        check_choice("bandwidth", spec, RULES)
        if spec == "median":
            return _median(x, y)
        if logit_scale is None:
            raise InputError('bandwidth: "temperature" needs a logit_scale; give one, or a number instead')
        scale = logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale
        return float(check_positive("logit_scale", scale) ** -0.5)
    return check_positive("bandwidth", spec.detach() if isinstance(spec, Tensor) else spec)


def median_rows(total: int) -> Tensor:
    """Which of all rows, x before y, the median rule looks at: int64, ascending."""
    return torch.linspace(0, total - 1, min(total, MEDIAN_ROWS), dtype=torch.float64).round().long()


def _median(x: Tensor, y: Tensor) -> float:
    take = median_rows(len(x) + len(y))
    in_x, in_y = take[take < len(x)], take[take >= len(x)] - len(x)
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    rows = torch.cat([x.detach()[in_x.to(x.device)].to(dtype), y.detach()[in_y.to(y.device)].to(dtype)])
    with torch.autocast(rows.device.type, enabled=False):
        distances = torch.pdist(rows)
    median = float(distances.median())
    if median == 0:
        raise InputError('bandwidth: the "median" rule finds a median distance of 0 (the rows coincide); give a number')
    return float(median / 2**0.5)
