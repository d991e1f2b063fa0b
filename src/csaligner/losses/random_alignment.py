"""Random feature alignment (RaFA): both modalities of a pair drawn to one random reference."""

from __future__ import annotations

import torch
from torch import Tensor

from csaligner.ops.reference import id_weights


def random_alignment(x: Tensor, y: Tensor, logit_scale: Tensor, ids_x: Tensor, ids_y: Tensor) -> Tensor:
    """Return the mean over pairs of (mean_i |x_i - z|^2 + mean_j |y_j - z|^2) / 2, one random z per pair and call.

    x: (N, d), y: (M, d), unit rows. ids: equal for the rows of a pair, -1: excluded; ids that occur in one modality
    only are ignored. i, j: the rows of a pair. z ~ N(0, I/d), from the generator of torch on the device of x.
    logit_scale is not used. Returns a scalar, 0 without pairs. Several ranks draw references of their own.

    Two things differ from the paper. Its references are N(0, I) and its features are not normalised, so the expectation
    of its loss also shrinks the features, and with them the mean of each modality. The rows of this package have length
    1: the length of z only multiplies the weight, the expectation over z is constant, and what is left is that the two
    modalities of a pair are moved together. And its other term, hybrid contrastive distillation (HyCD), mixes the
    labels of InfoNCE with the softmax of the model before training; with the weight of the labels at 1 it is InfoNCE,
    which is used instead, because features of two encoders have no softmax before training.
    Source: CLIP-Refine (Yamaguchi et al., CVPR 2025, arXiv 2504.12717), L_RaFA.
    """
    paired = torch.unique(ids_x[torch.isin(ids_x, ids_y) & (ids_x >= 0)])
    if len(paired) == 0:
        return (x.sum() + y.sum()) * 0
    d = x.shape[1]
    references = torch.randn(len(paired), d, device=x.device, dtype=x.dtype) / d**0.5
    return (_distance(x, ids_x, paired, references) + _distance(y, ids_y, paired, references)) / 2


def _distance(rows: Tensor, ids: Tensor, paired: Tensor, references: Tensor) -> Tensor:
    """Mean over the ids `paired` (K,), sorted, of the mean squared distance of their rows from references (K, d)."""
    kept = torch.isin(ids, paired)
    place = torch.searchsorted(paired, ids[kept])
    weights = id_weights(ids)[kept].to(rows.dtype)
    return (weights * (rows[kept] - references[place]).square().sum(dim=1)).sum() / len(paired)
