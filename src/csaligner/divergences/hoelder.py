"""The Hölder divergence, a generalisation of D_CS to any number of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from csaligner.ops.arguments import samples
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth
from csaligner.ops.kernels import Kernel, make_kernel
from csaligner.ops.reference import log_weights
from csaligner.ops.row_sums import log_density


def hoelder_divergence(
    x: Any,
    y: Any,
    *more: Any,
    bandwidth: Bandwidth | Sequence[Bandwidth] = DEFAULT_BANDWIDTH,
    weights_x: Any = None,
    weights_y: Any = None,
    kernel: str = "gaussian",
    impl: str = "auto",
) -> Tensor:
    """D = sum_k log int p_k^m - m log int p_1 p_2 ... p_m, for m samples (m >= 2), from kernel densities.

    By Hölder's inequality D >= 0 for densities, and 0 if all are equal. The integrals are estimated as means
    over the samples: int p_k^m = mean_i p_k(x_ki)^(m-1), and int p_1 ... p_m = mean over k of mean_i of the
    product of the other densities at x_ki. For m = 2 this equals D_CS; for m > 2 the estimate from few points may
    be slightly negative. x: (N, d), y: (M, d), more: any number of (L, d). Bandwidth rules use x and y only;
    kernel, weights and impl as in cauchy_schwarz_divergence; samples in `more` are unweighted.
    Returns a scalar, float64 if a sample is float64, else float32. Raises InputError.
    Source: Lu et al. 2024 (Generalized Cauchy-Schwarz divergence, arXiv 2405.04061), times m.
    """
    first = samples(x, y, weights_x, weights_y)
    others = [samples(first.x, z, names=("x", f"sample {n}")) for n, z in enumerate(more, start=3)]
    points = [first.x, first.y, *(pair.y for pair in others)]
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in points) else torch.float32
    weights = [first.weights_x, first.weights_y, *(None for _ in others)]
    clouds = [(p.to(dtype), log_weights(p.to(dtype), w)) for p, w in zip(points, weights, strict=True)]
    k = make_kernel(kernel, bandwidth, first.x, first.y)
    return of_clouds(clouds, k, impl)


def of_clouds(clouds: Sequence[tuple[Tensor, Tensor]], kernel: Kernel, impl: str) -> Tensor:
    """Return the divergence of m samples, each (points, log weights whose exponentials sum to 1)."""
    m = len(clouds)
    own, product = [], []
    for here, (points, log_a) in enumerate(clouds):
        densities = [log_density(points, other, kernel, log_b, impl) for other, log_b in clouds]
        own.append(torch.logsumexp(log_a + (m - 1) * densities[here], dim=0))
        others = torch.stack([value for there, value in enumerate(densities) if there != here]).sum(dim=0)
        product.append(torch.logsumexp(log_a + others, dim=0))
    mean_product = torch.logsumexp(torch.stack(product), dim=0) - math.log(m)
    return torch.stack(own).sum() - m * mean_product
