"""The sigmoid loss of SigLIP for paired samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from csaligner.ops.reference import id_weights

_NEWTON_STEPS = 20


def siglip(x: Tensor, y: Tensor, logit_scale: Tensor, ids_x: Tensor, ids_y: Tensor) -> Tensor:
    """sum_ij w_i w'_j softplus(-z_ij (logit_scale * x_i.y_j + b)) / sum_i w_i, z = 1 for pairs and -1 for others.

    x: (N, d), y: (M, d), unit rows. ids: equal for the rows of a pair, -1: excluded. w = 1/m, m = number of rows of
    that modality with the same id. The bias b is not a parameter: each batch uses its optimal value, the solution of a
    scalar convex problem (Newton's method), which needs no gradient by the envelope theorem.
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
    """Solve sum w (sigmoid(logits + b) - positive) = 0 for b; steps are clipped to 2 to ensure convergence."""
    share = (weights * positive).sum() / weights.sum()
    if share <= 0 or share >= 1:  # only positives or only negatives: the optimum is at infinity
        return torch.zeros_like(share)
    bias = torch.logit(share) - logits.mean()
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(logits + bias)
        slope, curvature = (weights * (p - positive)).sum(), (weights * p * (1 - p)).sum()
        bias = bias - (slope / curvature.clamp_min(1e-300)).clamp(-2, 2)
    return bias
