"""The kernel bandwidth sigma: a number, the median rule, or the temperature rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError, check_choice, check_positive

# For unit rows, whose distances are at most 2. 0.5 trains well on CLIP features at every temperature tried.
DEFAULT_BANDWIDTH = 0.5
RULES = ("median", "temperature")
MEDIAN_ROWS = 2048
SMALLEST, LARGEST = 1e-15, 1e15  # of sigma

Bandwidth = float | Tensor | str


def resolve_bandwidth(spec: Bandwidth, x: Tensor, y: Tensor, logit_scale: Any = None) -> float:
    """Return sigma of k(a, b) = exp(-|a - b|^2 / (2 sigma^2)), in the unit of the features. Not differentiable.

    spec: a number above 0; "median": the median distance between rows of the two samples pooled, divided by sqrt(2),
    so that k = 1/e at that distance (computed from at most 2,048 evenly spaced rows: the same on every rank and in
    every run); "temperature": sigma^2 = 1 / logit_scale. x: (N, d), y: (M, d). Raises InputError, also if sigma^2
    is outside the float32 range.
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
            raise InputError('bandwidth: "temperature" needs a logit_scale; provide one, or pass a number instead')
        scale = logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale
        return float(check_positive("logit_scale", scale) ** -0.5)
    return check_positive("bandwidth", spec.detach() if isinstance(spec, Tensor) else spec)


def median_rows(total: int) -> Tensor:
    """Return the indices of the rows that the median rule uses, counted over x then y: int64, ascending."""
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
        raise InputError('bandwidth: the median distance is 0 (the rows coincide); pass a number instead of "median"')
    return float(median / 2**0.5)
