"""Kernels of the density estimate (Gaussian, Laplacian, inverse multiquadric, mixtures).

A kernel is a function of t = |a - b|^2. It provides log k and its slope d(log k)/dt, from which values and gradients
follow: d log k / da = 2 * slope * (a - b). All values are in the log domain, so small bandwidths do not underflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from csaligner.checks import InputError, check_choice

from .bandwidth import Bandwidth, resolve_bandwidth


class Kernel(Protocol):
    """k(a, b) = k(|a - b|^2), with k(a, a) = 1 and 0 < k <= 1."""

    def log_value(self, t: Tensor) -> Tensor:
        """Return log k at the squared distances t; differentiable."""
        ...

    def log_value_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return log k and d(log k)/dt; not differentiable, may overwrite t. A constant slope is a float."""
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


@dataclass(frozen=True)
class Laplacian:
    """k(a, b) = exp(-|a - b| / sigma). Its gradient at a = b, where it is not differentiable, is defined as 0."""

    sigma: float

    def log_value(self, t: Tensor) -> Tensor:
        apart = t > 0
        return torch.where(apart, t, 1).sqrt() * apart * (-1 / self.sigma)

    def log_value_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor | float]:
        root = t.sqrt_()
        slope = (-0.5 / self.sigma / root).masked_fill_(root == 0, 0)
        return root.mul_(-1 / self.sigma), slope


@dataclass(frozen=True)
class InverseMultiquadric:
    """k(a, b) = (1 + |a - b|^2 / (2 sigma^2))^(-1/2): Gaussian at short range, with heavy tails."""

    sigma: float

    def log_value(self, t: Tensor) -> Tensor:
        return -0.5 * torch.log1p(t / (2 * self.sigma**2))

    def log_value_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor | float]:
        slope = -0.5 / (t + 2 * self.sigma**2)
        return t.div_(2 * self.sigma**2).log1p_().mul_(-0.5), slope


@dataclass(frozen=True)
class Mixture:
    """The mean of several kernels, for example one kernel at several bandwidths."""

    parts: tuple[Kernel, ...]

    def log_value(self, t: Tensor) -> Tensor:
        values = torch.stack([part.log_value(t) for part in self.parts])
        return values.logsumexp(dim=0) - math.log(len(self.parts))

    def log_value_and_slope(self, t: Tensor) -> tuple[Tensor, Tensor | float]:
        log_k, slope = torch.empty_like(t), torch.zeros_like(t)
        log_k.fill_(-math.inf)
        pairs = [part.log_value_and_slope(t.clone()) for part in self.parts]
        for value, _ in pairs:
            torch.logaddexp(log_k, value, out=log_k)
        for value, own in pairs:
            slope.add_(value.sub_(log_k).exp_().mul_(own))
        return log_k.sub_(math.log(len(self.parts))), slope


def bandwidths(kernel: Any) -> Bandwidth | list[Bandwidth]:
    """Return sigma of a kernel, or the list of sigmas of a mixture."""
    parts: tuple[Any, ...] = kernel.parts if isinstance(kernel, Mixture) else (kernel,)
    sigmas = [part.sigma for part in parts]
    return sigmas if isinstance(kernel, Mixture) else sigmas[0]


def narrowest(kernel: Kernel) -> float:
    """Return the smallest sigma of a kernel or mixture."""
    sigmas = bandwidths(kernel)
    return float(min(sigmas) if isinstance(sigmas, list) else sigmas)


KERNELS: dict[str, type[Gaussian] | type[Laplacian] | type[InverseMultiquadric]] = {
    "gaussian": Gaussian,
    "laplacian": Laplacian,
    "inverse_multiquadric": InverseMultiquadric,
}


def make_kernel(
    name: str, bandwidth: Bandwidth | Sequence[Bandwidth], x: Tensor, y: Tensor, logit_scale: Any = None
) -> Kernel:
    """Return the kernel with this name and bandwidth; several bandwidths give a Mixture.

    bandwidth: see resolve_bandwidth; x, y, logit_scale: inputs of its rules. Raises InputError.
    """
    shape = KERNELS[check_choice("kernel", name, KERNELS)]
    if isinstance(bandwidth, (str, Tensor)) or not isinstance(bandwidth, Sequence):
        return shape(resolve_bandwidth(bandwidth, x, y, logit_scale))
    if len(bandwidth) == 0:
        raise InputError("bandwidth: got an empty list, wanted at least one number")
    return Mixture(tuple(shape(resolve_bandwidth(each, x, y, logit_scale)) for each in bandwidth))
