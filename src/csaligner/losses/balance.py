"""Weights without guessing: terms balanced by the size of their gradients.

lambda_t = fraction * |g_ref| / |g_t|, so that the weighted gradient of term t is `fraction` as long as the reference's.
|g| is the norm of the gradient with respect to all embeddings together, sqrt(sum_i |dL/dx_i|^2 + sum_j |dL/dy_j|^2),
and a moving average of it stands in the formula. The idea is that of GradNorm (Chen et al. 2018) and of the adaptive
weight of VQGAN (Esser et al. 2021), here in closed form at the embeddings, where all terms meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def gradient_norm(value: Tensor, inputs: Sequence[Tensor]) -> float:
    """Length of the gradient of a scalar with respect to all inputs together; inputs it does not depend on count 0.

    The graph of `value` is used up.
    """
    grads = torch.autograd.grad(value, list(inputs), allow_unused=True)
    norms = [torch.linalg.vector_norm(g.double()) for g in grads if g is not None]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


class GradientBalance:
    """Moving averages of gradient norms, and the weights that follow from them.

    fraction: length of the weighted gradient of a term over that of the reference. momentum: share of the old average
    that stays at an update, in [0, 1). max_weight: where the weights end, for a term whose gradient vanishes.
    """

    def __init__(self, reference: str, fraction: float, momentum: float, max_weight: float) -> None:
        self.reference, self.fraction = reference, fraction
        self.momentum, self.max_weight = momentum, max_weight
        self.averages: dict[str, float] = {}

    def update(self, norms: Mapping[str, float]) -> None:
        """average <- momentum * average + (1 - momentum) * norm; the first norm is the first average."""
        for name, norm in norms.items():
            old = self.averages.get(name, norm)
            self.averages[name] = self.momentum * old + (1 - self.momentum) * norm

    def weight(self, name: str) -> float:
        """lambda of a term, from the averages of that term and of the reference."""
        wanted, own = self.fraction * self.averages[self.reference], self.averages[name]
        return min(self.max_weight, wanted / own) if own > 0 else self.max_weight
