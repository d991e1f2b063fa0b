"""The squared maximum mean discrepancy between two samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from csaligner.checks import InputError
from csaligner.ops import dispatch
from csaligner.ops.arguments import samples
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth
from csaligner.ops.kernels import make_kernel


def mmd(
    x: Any,
    y: Any,
    *,
    bandwidth: Bandwidth | Sequence[Bandwidth] = DEFAULT_BANDWIDTH,
    kernel: str = "gaussian",
    weights_x: Any = None,
    weights_y: Any = None,
    unbiased: bool = False,
    impl: str = "auto",
) -> Tensor:
    """MMD^2 = mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j).

    Arguments and kernel as in cauchy_schwarz_divergence. unbiased=True excludes i = j from the first two
    means; the value may then be negative, and each sample needs at least two rows.
    Returns a scalar between 0 and 2 (biased), float64 if a sample is float64, else float32.
    Raises InputError. Source: Gretton et al. 2012 (JMLR 13), eq. 5; unbiased: eq. 3.
    """
    s = samples(x, y, weights_x, weights_y, half=True)
    if unbiased and min(len(s.x), len(s.y)) == 1:
        raise InputError("mmd: unbiased=True needs at least 2 rows of non-zero weight in each sample; got 1")
    k = make_kernel(kernel, bandwidth, s.x, s.y)
    s, impl = dispatch.settle(s, k, impl)
    return from_log_means(*dispatch.log_kernel_means(s, k, impl, diagonal=not unbiased)).to(s.dtype)


def from_log_means(within_x: Tensor, within_y: Tensor, between: Tensor) -> Tensor:
    """Return MMD^2 computed from its three log kernel means."""
    return within_x.exp() + within_y.exp() - 2 * between.exp()
