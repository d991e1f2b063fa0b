"""InfoNCE, the symmetric contrastive loss of paired samples."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from csaligner.ops import dispatch
from csaligner.ops.arguments import Ids, pair_ids, samples, scale_of
from csaligner.ops.contrastive import RowInfo

NAMES = ("image_features", "text_features")


def info_nce(
    image_features: Any,
    text_features: Any,
    logit_scale: Tensor | float,
    image_ids: Ids | None = None,
    *,
    text_ids: Ids | None = None,
    impl: str = "auto",
) -> Tensor:
    """Symmetric InfoNCE with any number of positives per row.

    S_ij = logit_scale * x_i . y_j, w = 1/m with m the number of rows of that modality with the same id,
    P(i) = the texts with the id of image i:
    loss = 1/2 [mean_i (lse_j (S_ij + log w_j) - lse_{j in P(i)} (S_ij + log w_j)) + the same over columns],
    the means weighted by w. With one text per image this is the loss of CLIP. Captions of the same image are not
    negatives of each other, and repeating a caption has no effect.

    image_features: (N, d), text_features: (M, d), not normalised here: pass unit rows, as in open_clip.
    logit_scale: 1/temperature, above 0; a tensor may carry a gradient. image_ids: N, text_ids: M integers or
    hashables, equal for the rows of a pair; rows with id -1 or None are unpaired and excluded. Without ids, image i
    and text i form a pair; text_ids defaults to image_ids. Rows without a positive are excluded from the means.
    Returns a scalar >= 0 in nats, float64 if an input is float64, else float32. Raises InputError.
    Source: MIL-NCE (Miech et al. 2020) eq. 1; CLIP (Radford et al. 2021) fig. 3.
    """
    s = samples(image_features, text_features, names=NAMES, half=True)
    s, impl = dispatch.settle(s, None, impl)
    rows = RowInfo(*pair_ids(image_ids, text_ids, s.x, s.y))
    op = dispatch.implementation(impl, s.x, s.y)
    return op.info_nce(s.x, s.y, scale_of(logit_scale, s.x), rows).to(s.dtype)
