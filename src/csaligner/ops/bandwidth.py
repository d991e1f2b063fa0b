"""The kernel bandwidth sigma: a number, a median rule, or the temperature rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError, check_choice, check_positive

# For unit rows, whose distances are at most 2. 0.5 trains well on CLIP features at every temperature tried.
DEFAULT_BANDWIDTH = 0.5
MEDIANS = ("median", "median-cross")
RULES = (*MEDIANS, "temperature")
MEDIAN_ROWS = 2048
SMALLEST, LARGEST = 1e-15, 1e15  # of sigma

Bandwidth = float | Tensor | str


def check_bandwidth(bandwidth: Any) -> None:
    """Check a bandwidth, or each of a mixture, without features. Raises InputError, as resolve_bandwidth."""
    mixture = isinstance(bandwidth, Sequence) and not isinstance(bandwidth, str)
    if mixture and len(bandwidth) == 0:
        raise InputError("bandwidth: got an empty list, wanted at least one number")
    for each in bandwidth if mixture else (bandwidth,):
        if isinstance(each, str):
            check_choice("bandwidth", each, RULES)
        else:
            _check_range(_number(each))


def resolve_bandwidth(spec: Bandwidth, x: Tensor, y: Tensor, logit_scale: Any = None) -> float:
    """Return sigma of k(a, b) = exp(-|a - b|^2 / (2 sigma^2)), in the unit of the features. Not differentiable.

    spec: a number above 0; "median": the median distance between rows of the two samples pooled, divided by sqrt(2),
    so that k = 1/e at that distance; "median-cross": the same of the N M distances between a row of x and a row of y
    (both from at most 2,048 evenly spaced rows: the same on every rank and in every run; the lower of two middle
    values); "temperature": sigma^2 = 1 / logit_scale. x: (N, d), y: (M, d). Raises InputError, also if sigma^2 is
    outside the float32 range.
    """
    return _check_range(_resolve(spec, x, y, logit_scale))


def _check_range(sigma: float) -> float:
    if not SMALLEST <= sigma <= LARGEST:
        raise InputError(f"bandwidth: got {sigma:g}, wanted {SMALLEST:g} to {LARGEST:g}; scale the features")
    return sigma


def _number(spec: float | Tensor) -> float:
    return check_positive("bandwidth", spec.detach() if isinstance(spec, Tensor) else spec)


def _resolve(spec: Bandwidth, x: Tensor, y: Tensor, logit_scale: Any) -> float:
    if isinstance(spec, str):
        check_choice("bandwidth", spec, RULES)
        if spec in MEDIANS:
            return _median(x, y, spec)
        if logit_scale is None:
            raise InputError('bandwidth: "temperature" needs a logit_scale; provide one, or pass a number instead')
        scale = logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale
        return float(check_positive("logit_scale", scale) ** -0.5)
    return _number(spec)


def median_rows(total: int) -> Tensor:
    """Return the indices of the rows that the median rule uses, counted over x then y: int64, ascending."""
    return torch.linspace(0, total - 1, min(total, MEDIAN_ROWS), dtype=torch.float64).round().long()


def uses_median(bandwidth: Bandwidth | Sequence[Bandwidth]) -> bool:
    """Whether a bandwidth, or one of a mixture, follows a median rule."""
    each = bandwidth if isinstance(bandwidth, Sequence) and not isinstance(bandwidth, str) else (bandwidth,)
    return any(isinstance(one, str) and one in MEDIANS for one in each)


def _median(x: Tensor, y: Tensor, rule: str) -> float:
    take = median_rows(len(x) + len(y))
    in_x, in_y = take[take < len(x)], take[take >= len(x)] - len(x)
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    a, b = (side.detach()[rows.to(side.device)].to(dtype) for side, rows in ((x, in_x), (y, in_y)))
    with torch.autocast(a.device.type, enabled=False):
        exact = "donot_use_mm_for_euclid_dist"
        distances = torch.pdist(torch.cat([a, b])) if rule == "median" else torch.cdist(a, b, compute_mode=exact)
    median = float(distances.median())
    if median == 0:
        raise InputError(f'bandwidth: the median distance is 0 (the rows coincide); pass a number instead of "{rule}"')
    return float(median / 2**0.5)
