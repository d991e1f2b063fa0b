"""Reference implementation: kernel means, D_CS, MMD and InfoNCE with plain autograd in the log domain, O(N M) memory.

All other implementations are tested against these functions in float64. They compute in the dtype of the features and
do not check their arguments; see arguments.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kernels import Kernel

ROUNDING = 16.0  # error bound of |x|^2 + |y|^2 - 2 x.y, in machine epsilons of |x|^2 + |y|^2


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (N, d), (M, d) -> (N, M).

    The common mean is subtracted first, which avoids cancellation for samples far from the origin.
    """
    lengths, products = _lengths_and_products(x, y)
    return (lengths - 2 * products).clamp_min(0)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|, (N, d), (M, d) -> (N, M); 0, with gradient 0, if the square is within its rounding error.

    Otherwise the square root would turn a rounding error of 1e-16 into a distance of 1e-8 between equal points.
    """
    lengths, products = _lengths_and_products(x, y)
    t = lengths - 2 * products
    apart = t > ROUNDING * torch.finfo(t.dtype).eps * lengths.detach()
    return torch.where(apart, t, 1).sqrt() * apart


def _lengths_and_products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return |x_i|^2 + |y_j|^2 and x_i.y_j, relative to the common mean."""
    centre = torch.cat([x.detach(), y.detach()]).mean(dim=0)
    x, y = x - centre, y - centre
    return x.square().sum(dim=1)[:, None] + y.square().sum(dim=1), x @ y.T


def log_kernel_mean(
    x: Tensor,
    y: Tensor | None,
    kernel: Kernel,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    diagonal: bool = True,
) -> Tensor:
    """Return log sum_ij a_i b_j k(x_i, y_j), with weights a and b normalised to sum to 1. Scalar.

    x: (N, d); y: (M, d), or None for x against itself. weights: (N,) and (M,), positive; None: all equal.
    diagonal=False (only for x against itself) excludes i = j:
    log [sum_{i != j} a_i a_j k(x_i, x_j) / (1 - sum_i a_i^2)].
    Source: the three means of CS-Aligner (arXiv 2502.17028) eq. 8.
    """
    log_a = log_weights(x, weights_x)
    if y is None:
        t = squared_distances(x, x)
        same = torch.eye(len(x), dtype=torch.bool, device=x.device)
        log_k = kernel.log_value(t.masked_fill(same, 0)) + log_a[:, None] + log_a
        if diagonal:
            return torch.logsumexp(log_k.flatten(), 0)
        log_k = log_k.masked_fill(same, -torch.inf)
        return torch.logsumexp(log_k.flatten(), 0) - torch.log1p(-(2 * log_a).exp().sum())
    log_k = kernel.log_value(squared_distances(x, y)) + log_a[:, None] + log_weights(y, weights_y)
    return torch.logsumexp(log_k.flatten(), 0)


def cauchy_schwarz(
    x: Tensor, y: Tensor, kernel: Kernel, weights_x: Tensor | None = None, weights_y: Tensor | None = None
) -> Tensor:
    """D_CS = log mean k(x, x) + log mean k(y, y) - 2 log mean k(x, y) (CS-Aligner eq. 8), diagonal included."""
    within_x = log_kernel_mean(x, None, kernel, weights_x)
    within_y = log_kernel_mean(y, None, kernel, weights_y)
    return within_x + within_y - 2 * log_kernel_mean(x, y, kernel, weights_x, weights_y)


def mmd(
    x: Tensor,
    y: Tensor,
    kernel: Kernel,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    unbiased: bool = False,
) -> Tensor:
    """MMD^2 = mean k(x, x) + mean k(y, y) - 2 mean k(x, y) (Gretton et al. 2012, eq. 5; unbiased: eq. 3)."""
    within_x = log_kernel_mean(x, None, kernel, weights_x, diagonal=not unbiased).exp()
    within_y = log_kernel_mean(y, None, kernel, weights_y, diagonal=not unbiased).exp()
    return within_x + within_y - 2 * log_kernel_mean(x, y, kernel, weights_x, weights_y).exp()


def info_nce(x: Tensor, y: Tensor, scale: Tensor | float, ids_x: Tensor, ids_y: Tensor) -> Tensor:
    """Multi-positive symmetric InfoNCE. Scalar.

    S_ij = scale * x_i . y_j; features are not normalised here. w = 1/m, m = number of rows of that modality with the
    same id, so that repeating a caption has no effect. P(i) = the j with the id of i. Id -1: unpaired, excluded
    (w = 0).
    Row i:  l_i = lse_j (S_ij + log w_j) - lse_{j in P(i)} (S_ij + log w_j), and likewise for columns;
    loss = 1/2 (weighted mean of l over rows + over columns). A row without a positive is excluded from
    the mean but is a negative of the others. Unique ids: the loss of CLIP (Radford et al. 2021, fig. 3).
    Source: MIL-NCE (Miech et al. 2020, eq. 1), in both directions.
    """
    w_x, w_y = id_weights(ids_x).to(x.dtype), id_weights(ids_y).to(x.dtype)
    logits = scale * (x @ y.T)  # (N, M)
    positive = (ids_x[:, None] == ids_y) & (ids_y >= 0)
    rows = _direction(logits, positive, w_x, w_y)
    columns = _direction(logits.T, positive.T, w_y, w_x)
    return (rows + columns) / 2


def _direction(logits: Tensor, positive: Tensor, w_rows: Tensor, w_columns: Tensor) -> Tensor:
    """Return the weighted mean of -log (softmax mass of the positives) over the rows that have a positive."""
    has = positive.any(dim=1)  # other rows are not removed, whose number a GPU would have to report: they get weight 0
    logits, excluded, w_rows = logits + w_columns.log(), ~positive & has[:, None], w_rows * has
    loss = logits.logsumexp(dim=1) - logits.masked_fill(excluded, -torch.inf).logsumexp(dim=1)
    return (w_rows * loss).sum() / w_rows.sum()


def log_weights(x: Tensor, weights: Tensor | None) -> Tensor:
    """Return the log of the weights normalised to sum to 1, (N,), in the dtype of x; None: all equal."""
    if weights is None:
        return x.new_full((len(x),), 1 / len(x)).log()
    return (weights.double() / weights.double().sum()).log().to(x.dtype)


def id_weights(ids: Tensor, unpaired: float = 0.0) -> Tensor:
    """Return 1/m for each row, m = number of rows with its id; `unpaired` for negative ids. (N,) float64."""
    ordered = ids.sort().values  # unlike unique, this does not wait for a GPU
    counts = torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
    return counts.double().reciprocal().masked_fill(ids < 0, unpaired)
