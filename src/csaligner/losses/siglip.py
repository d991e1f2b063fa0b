"""The sigmoid loss on paired samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from csaligner.ops.reference import id_weights

_NEWTON_STEPS = 20


def siglip(x: Tensor, y: Tensor, logit_scale: Tensor, ids_x: Tensor, ids_y: Tensor) -> Tensor:
    """sum_ij w_i w'_j softplus(-z_ij (logit_scale * x_i.y_j + b)) / sum_i w_i, z = 1 for pairs and -1 for others.

    x: (N, d), y: (M, d), unit rows. ids: equal where rows belong together, -1: takes no part. w = 1/m, m the rows of
    that modality with the same id. The bias b is not learnt over steps but stands at its optimum on every batch,
    which is one number and a convex problem (Newton's method); by the envelope theorem it needs no gradient.
    Returns a scalar. Source: SigLIP (Zhai et al. 2023), algorithm 1.
    """
    w_x, w_y = (id_weights(ids).to(x.dtype) for ids in (ids_x, ids_y))
    weights = w_x[:, None] * w_y
    positive = (ids_x[:, None] == ids_y).to(x.dtype)
    logits = logit_scale * (x @ y.T)
    bias = _best_bias(logits.detach().double(), weights.double(), positive.double())
    signed = (1 - 2 * positive) * (logits + bias.to(logits.dtype))
    return (weights * softplus(signed)).sum() / w_x.sum()


def _best_bias(logits: Tensor, weights: Tensor, positive: Tensor) -> Tensor:
    """Where sum w (sigmoid(logits + b) - positive) = 0; a step is at most 2 long, so that it cannot run away."""
    share = (weights * positive).sum() / weights.sum()
    if share <= 0 or share >= 1:  # all of one kind: the optimum lies at infinity
        return torch.zeros_like(share)
    bias = torch.logit(share) - logits.mean()
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(logits + bias)
        slope, curvature = (weights * (p - positive)).sum(), (weights * p * (1 - p)).sum()
        bias = bias - (slope / curvature.clamp_min(1e-300)).clamp(-2, 2)
    return bias
