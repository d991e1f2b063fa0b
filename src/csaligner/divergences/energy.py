"""The energy distance between two samples, which has no bandwidth."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from csaligner.ops.arguments import samples
from csaligner.ops.row_sums import mean_distance


def energy_distance(x: Any, y: Any, *, weights_x: Any = None, weights_y: Any = None, impl: str = "auto") -> Tensor:
    """2 mean_ij |x_i - y_j| - mean_ij |x_i - x_j| - mean_ij |y_i - y_j|, in the unit of the features.

    x: (N, d), y: (M, d). weights and impl as in cauchy_schwarz_divergence. Diagonals are included
    (V-statistic): the value is >= 0, and 0 if the weighted samples coincide. The gradient of |a - b| at a = b is
    defined as 0. Returns a scalar, float64 if a sample is float64, else float32. Raises InputError.
    Source: Szekely and Rizzo 2013 (J. Stat. Plan. Inference 143), eq. 2.1 with exponent 1.
    """
    s = samples(x, y, weights_x, weights_y)
    between = mean_distance(s.x, s.y, s.weights_x, s.weights_y, impl)
    within_x = mean_distance(s.x, s.x, s.weights_x, s.weights_x, impl)
    within_y = mean_distance(s.y, s.y, s.weights_y, s.weights_y, impl)
    return 2 * between - within_x - within_y
