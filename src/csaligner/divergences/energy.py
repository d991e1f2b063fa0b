"""The energy distance between two samples, which has no bandwidth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from csaligner.ops.arguments import Samples, samples
from csaligner.ops.row_sums import mean_distance
from csaligner.ops.tiles import totals_dtype

# Smallest energy distance, relative to the mean distance between the samples, that float32 computes to four digits;
# smaller ones, as of clusters far from each other, are computed in float64.
SMALLEST_IN_FLOAT32 = 1e-3


def energy_distance(x: Any, y: Any, *, weights_x: Any = None, weights_y: Any = None, impl: str = "auto") -> Tensor:
    """2 mean_ij |x_i - y_j| - mean_ij |x_i - x_j| - mean_ij |y_i - y_j|, in the unit of the features.

    x: (N, d), y: (M, d). weights and impl as in cauchy_schwarz_divergence. Diagonals are included
    (V-statistic): the value is >= 0, and 0 if the weighted samples coincide. The gradient of |a - b| at a = b is
    defined as 0. Returns a scalar, float64 if a sample is float64, else float32. Raises InputError.
    Source: Szekely and Rizzo 2013 (J. Stat. Plan. Inference 143), eq. 2.1 with exponent 1.
    """
    s = samples(x, y, weights_x, weights_y)
    value, between = _value(s, impl)
    if s.dtype == totals_dtype(s.x) or float(value.detach()) > SMALLEST_IN_FLOAT32 * float(between):
        return value
    return _value(replace(s, x=s.x.double(), y=s.y.double()), impl)[0].to(s.dtype)


def _value(s: Samples, impl: str) -> tuple[Tensor, Tensor]:
    """Return the energy distance, and the mean distance between the samples."""
    between = mean_distance(s.x, s.y, s.weights_x, s.weights_y, impl)
    within_x = mean_distance(s.x, s.x, s.weights_x, s.weights_x, impl)
    within_y = mean_distance(s.y, s.y, s.weights_y, s.weights_y, impl)
    return 2 * between - within_x - within_y, between.detach()
