"""Alternative implementations of the same losses: plain torch, torch.compile, checkpointing, KeOps, GeomLoss.

Each takes x (N, d), y (N, d) with unit rows, the logit scale and sigma, and returns the scalar to
differentiate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import geomloss
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from csaligner.distributed.loss import CSAlignerLoss
from csaligner.divergences.mmd import mmd

Loss = Callable[[Tensor, Tensor, float, float], Tensor]


def csaligner_tiled(x: Tensor, y: Tensor, scale: float, sigma: float) -> Tensor:
    total: Tensor = CSAlignerLoss(bandwidth=sigma, impl="tiled")(x, y, scale).total
    return total


def csaligner_mixed(x: Tensor, y: Tensor, scale: float, sigma: float) -> Tensor:
    """The opt-in mixed mode: exact value, gradient products in bfloat16."""
    total: Tensor = CSAlignerLoss(bandwidth=sigma, impl="mixed")(x, y, scale).total
    return total


def csaligner_triton(x: Tensor, y: Tensor, scale: float, sigma: float) -> Tensor:
    """The GPU implementation, with half-precision features."""
    total: Tensor = CSAlignerLoss(bandwidth=sigma, impl="triton")(x, y, scale).total
    return total


def dense(x: Tensor, y: Tensor, scale: float, sigma: float) -> Tensor:
    """Autograd over N x N matrices; x y^T shared between InfoNCE and the divergence."""
    g = 1 / sigma**2
    cross, target = x @ y.T, torch.arange(len(x), device=x.device)
    nce = (cross_entropy(scale * cross, target) + cross_entropy(scale * cross.T, target)) / 2

    def log_sum(products: Tensor) -> Tensor:
        return torch.logsumexp((g * products - g).flatten(), dim=0)

    return nce + log_sum(x @ x.T) + log_sum(y @ y.T) - 2 * log_sum(cross)


def dense_cdist(x: Tensor, y: Tensor, scale: float, sigma: float) -> Tensor:
    """The kernel computed with torch.cdist."""
    logits, target = scale * x @ y.T, torch.arange(len(x), device=x.device)
    nce = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2

    def log_sum(a: Tensor, b: Tensor) -> Tensor:
        return torch.logsumexp((torch.cdist(a, b).square() * (-0.5 / sigma**2)).flatten(), dim=0)

    return nce + log_sum(x, x) + log_sum(y, y) - 2 * log_sum(x, y)


def checkpointed(x: Tensor, y: Tensor, scale: float, sigma: float, rows: int = 1024) -> Tensor:
    """Blocks of rows, recomputed in backward by torch.utils.checkpoint."""
    g = 1 / sigma**2

    def block(a: Tensor, b: Tensor) -> Tensor:
        return torch.logsumexp((g * (a @ b.T) - g).flatten(), dim=0)

    def softmax_rows(a: Tensor, b: Tensor, first: Tensor) -> Tensor:
        logits = scale * (a @ b.T)
        return cross_entropy(logits, first + torch.arange(len(a), device=a.device), reduction="sum")

    def total(function: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
        parts = [checkpoint(function, part, b, use_reentrant=False) for part in torch.split(a, rows)]
        return torch.logsumexp(torch.stack(parts), dim=0)

    nce = x.new_zeros(())
    for a, b in ((x, y), (y, x)):
        for start, part in enumerate(torch.split(a, rows)):
            first = torch.tensor(start * rows, device=x.device)
            nce = nce + checkpoint(softmax_rows, part, b, first, use_reentrant=False)
    return nce / (2 * len(x)) + total(block, x, x) + total(block, y, y) - 2 * total(block, x, y)


@cache
def _compiled() -> Loss:
    compiled: Loss = torch.compile(dense)
    return compiled


def dense_compiled(x: Tensor, y: Tensor, scale: float, sigma: float) -> Tensor:
    """torch.compile of `dense`; compilation happens in the warm-up."""
    return _compiled()(x, y, scale, sigma)


def keops(x: Tensor, y: Tensor, scale: float, sigma: float) -> Tensor:
    """Symbolic matrices of KeOps; needs pykeops and a compiler, which runs in the warm-up."""
    from pykeops.torch import LazyTensor

    g = 1 / sigma**2

    def products(a: Tensor, b: Tensor) -> LazyTensor:
        return (LazyTensor(a[:, None].contiguous()) * LazyTensor(b[None].contiguous())).sum(-1)

    def log_sum(a: Tensor, b: Tensor) -> Tensor:
        return torch.logsumexp((g * products(a, b) - g).logsumexp(dim=1).flatten(), dim=0)

    logits, positives = scale * products(x, y), scale * (x * y).sum(dim=1)
    nce = (logits.logsumexp(dim=1).mean() + logits.logsumexp(dim=0).mean()) / 2 - positives.mean()
    total: Tensor = nce + log_sum(x, x) + log_sum(y, y) - 2 * log_sum(x, y)
    return total


def csaligner_mmd(x: Tensor, y: Tensor, scale: float, sigma: float) -> Tensor:
    return mmd(x, y, bandwidth=sigma, impl="tiled")


def geomloss_mmd(x: Tensor, y: Tensor, scale: float, sigma: float) -> Tensor:
    value: Tensor = geomloss.SamplesLoss("gaussian", blur=sigma, backend="tensorized")(x, y)
    return 2 * value  # geomloss halves


GROUPS: dict[str, dict[str, Loss]] = {
    "cauchy_schwarz + info_nce": {
        "csaligner": csaligner_tiled,
        "csaligner_mixed": csaligner_mixed,
        "csaligner_triton": csaligner_triton,
        "dense": dense,
        "cdist": dense_cdist,
        "checkpointed": checkpointed,
        "compiled": dense_compiled,
        "keops": keops,
    },
    "mmd": {"csaligner_mmd": csaligner_mmd, "geomloss": geomloss_mmd},
}
LOSSES: dict[str, Loss] = {name: loss for group in GROUPS.values() for name, loss in group.items()}
# Flops of value and gradient in units of N^2 d: self terms 3 + 3, cross 2 + 6; MMD: 3 + 3 + 6.
FLOPS = {"cauchy_schwarz + info_nce": 14, "mmd": 12}
