"""Squared distance between paired rows, the L2 term of unCLIP priors."""

from __future__ import annotations

from torch import Tensor

from csaligner.ops.reference import id_weights


def paired_l2(x: Tensor, y: Tensor, logit_scale: Tensor, ids_x: Tensor, ids_y: Tensor) -> Tensor:
    """Return the mean over ids of the mean |x_i - y_j|^2 over the rows of both modalities with that id.

    x: (N, d), y: (M, d). ids: equal for the rows of a pair, -1: excluded; ids that occur in one modality only are
    ignored. logit_scale is not used. Returns a scalar, 0 without pairs. The L2 term of ECLIPSE (Patel et al. 2024,
    eq. 4), and the information-bottleneck regulariser of Almudevar et al. (2025) with Gaussian conditionals of
    one fixed variance, up to its weight.
    """
    paired = (ids_x[:, None] == ids_y) & (ids_y >= 0)
    weights = (id_weights(ids_x)[:, None] * id_weights(ids_y)).to(x.dtype) * paired
    rows, columns = paired.nonzero(as_tuple=True)
    distances = (x[rows] - y[columns]).square().sum(dim=1)
    total = weights.sum()
    return (weights[rows, columns] * distances).sum() / total.clamp_min(1e-12)
