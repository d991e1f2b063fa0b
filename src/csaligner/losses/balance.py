"""Automatic loss weights by gradient balancing.

lambda_t = fraction * |g_ref| / |g_t|: the norm of the weighted gradient of term t is `fraction` times that of the
reference. |g| is a moving average of the gradient norm with respect to all embeddings,
sqrt(sum_i |dL/dx_i|^2 + sum_j |dL/dy_j|^2). Related: GradNorm (Chen et al. 2018) and the adaptive weight of VQGAN
(Esser et al. 2021); here in closed form, with gradients at the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def gradient_norm(value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Return the norm of the gradient of a scalar with respect to all inputs, a scalar in float64; inputs it does not
    depend on count as 0.

    The graph of `value` is freed.
    """
    grads = torch.autograd.grad(value, list(inputs), allow_unused=True)
    norms = [torch.linalg.vector_norm(g.double()) for g in grads if g is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else value.new_zeros((), dtype=torch.float64)


class GradientBalance:
    """Moving averages of gradient norms, and the resulting weights.

    fraction: norm of the weighted gradient of a term relative to that of the reference. momentum: weight of the old
    average in an update, in [0, 1). max_weight: upper limit of the weights, for terms whose gradient vanishes.
    """

    def __init__(self, reference: str, fraction: float, momentum: float, max_weight: float) -> None:
        self.reference, self.fraction = reference, fraction
        self.momentum, self.max_weight = momentum, max_weight
        self.averages: dict[str, float] = {}

    def update(self, norms: Mapping[str, float]) -> None:
        """Update average <- momentum * average + (1 - momentum) * norm; the first norm initialises the average."""
        for name, norm in norms.items():
            old = self.averages.get(name, norm)
            self.averages[name] = self.momentum * old + (1 - self.momentum) * norm

    def weight(self, name: str) -> float:
        """Return lambda of a term, from the averages of that term and of the reference."""
        wanted, own = self.fraction * self.averages[self.reference], self.averages[name]
        return min(self.max_weight, wanted / own) if own > 0 else self.max_weight
