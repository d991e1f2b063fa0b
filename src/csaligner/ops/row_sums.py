"""Log densities and mean distances: one sum over the other sample per row, in blocks of b rows, O(N d + b M) memory.

Gradients use autograd; with the tiled implementation, each block is recomputed in backward instead of stored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .dispatch import choose
from .kernels import Kernel, narrowest
from .reference import distances, log_weights, squared_distances
from .tiles import CPU_BLOCK, no_autocast, uncompiled, widened


def log_density(x: Tensor, y: Tensor, kernel: Kernel, log_b: Tensor, impl: str = "auto") -> Tensor:
    """Return log sum_j exp(log_b_j) k(x_i, y_j) for each i. x: (N, d), y: (M, d), log_b: (M,) -> (N,)."""
    dtype = x.dtype
    if choose(impl, x, y) != "reference":
        x, y = widened(x, y, narrowest(kernel))
        log_b = log_b.to(x.dtype)

    def block(rows: Tensor, others: Tensor, offsets: Tensor) -> Tensor:
        return torch.logsumexp(kernel.log_value(squared_distances(rows, others)) + offsets, dim=1)

    return _by_blocks(block, x, y, log_b, impl).to(dtype)


def mean_distance(
    x: Tensor, y: Tensor, weights_x: Tensor | None, weights_y: Tensor | None, impl: str = "auto"
) -> Tensor:
    """Return sum_ij a_i b_j |x_i - y_j|, weights normalised to sum to 1. Scalar. The gradient at x_i = y_j is 0."""

    def block(rows: Tensor, others: Tensor, b: Tensor) -> Tensor:
        return distances(rows, others) @ b

    a, b = log_weights(x, weights_x).exp(), log_weights(y, weights_y).exp()
    return (a * _by_blocks(block, x, y, b, impl)).sum()


@uncompiled
def _by_blocks(function: Callable[..., Tensor], x: Tensor, y: Tensor, more: Tensor, impl: str) -> Tensor:
    with no_autocast(x):
        if choose(impl, x, y) == "reference":
            return function(x, y, more)
        parts = [
            checkpoint(function, rows, y, more, use_reentrant=False, preserve_rng_state=False)
            for rows in torch.split(x, CPU_BLOCK)
        ]
    return torch.cat(parts)
