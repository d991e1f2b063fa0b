"""Kernels of the density estimate, as functions of the squared distance.

A kernel gives log k and its slope d(log k)/d(t) at t = |a - b|^2, which is all that value and gradient need:
d log k / da = 2 * slope * (a - b). Everything is in the log domain, so no bandwidth underflows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Kernel(Protocol):
    """k(a, b) = k(|a - b|^2), with k(a, a) = 1 and 0 < k <= 1."""

    def log_value(self, t: Tensor) -> Tensor:
        """log k at the squared distances t, differentiable; may reuse the memory of t."""
        ...

    def log_value_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor | float]:
        """log k and d(log k)/dt, not differentiable; may overwrite t. A constant slope is a float."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """k(a, b) = exp(-|a - b|^2 / (2 sigma^2)); sigma has the unit of the features."""

    sigma: float

    def log_value(self, t: Tensor) -> Tensor:
        return t * (-0.5 / self.sigma**2)

    def log_value_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor | float]:
        slope = -0.5 / self.sigma**2
        return t.mul_(slope), slope
