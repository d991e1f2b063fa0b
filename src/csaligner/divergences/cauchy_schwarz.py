"""The Cauchy-Schwarz divergence between two samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from csaligner.ops import dispatch
from csaligner.ops.arguments import samples
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth
from csaligner.ops.kernels import make_kernel


def cauchy_schwarz_divergence(
    x: Any,
    y: Any,
    *,
    bandwidth: Bandwidth | Sequence[Bandwidth] = DEFAULT_BANDWIDTH,
    kernel: str = "gaussian",
    weights_x: Any = None,
    weights_y: Any = None,
    impl: str = "auto",
) -> Tensor:
    """D_CS = log mean_ij k(x_i, x_j) + log mean_ij k(y_i, y_j) - 2 log mean_ij k(x_i, y_j).

    x: (N, d), y: (M, d), in the same space; the rows need not be paired. Features are not normalised.
    kernel: a key of ops.kernels.KERNELS; "gaussian" is k(a, b) = exp(-|a - b|^2 / (2 sigma^2)). bandwidth:
    sigma in the unit of the features, a rule of ops.bandwidth.resolve_bandwidth, or several for a mixture.
    weights_x: (N,), weights_y: (M,), row weights, normalised to sum to 1; a weight of 0 or False excludes the
    row. impl: see ops.dispatch. Returns a scalar, float64 if a sample is float64, else float32. The diagonals
    i = j are included, so D >= 0, and D = 0 if the weighted samples coincide. D is symmetric; for one point per
    sample and the Gaussian kernel it is |x - y|^2 / sigma^2. Raises InputError.
    Source: CS-Aligner (arXiv 2502.17028) eq. 8.
    """
    s = samples(x, y, weights_x, weights_y, half=True)
    k = make_kernel(kernel, bandwidth, s.x, s.y)
    s, impl = dispatch.settle(s, k, impl)
    return from_log_means(*dispatch.log_kernel_means(s, k, impl)).to(s.dtype)


def from_log_means(within_x: Tensor, within_y: Tensor, between: Tensor) -> Tensor:
    """Return D_CS computed from its three log kernel means."""
    return within_x + within_y - 2 * between
