"""The contrastive loss on paired samples."""

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
    """Symmetric InfoNCE with any number of positives a row.

    S_ij = logit_scale * x_i . y_j, w = 1/m with m the rows of that modality that share the id,
    P(i) = the texts with the id of image i:
    loss = 1/2 [mean_i (lse_j (S_ij + log w_j) - lse_{j in P(i)} (S_ij + log w_j)) + the same over columns],
    the means weighted by w. With one text an image this is CLIP's loss exactly; several captions of an image
    are not negatives of each other, and repeating one changes nothing.

    image_features: (N, d), text_features: (M, d), used as given: normalise rows before, as in open_clip.
    logit_scale: 1/temperature, above 0; a tensor may carry a gradient. image_ids: N, text_ids: M integers or
    hashables, equal where rows belong together, -1 or None: unpaired, takes no part. Without ids row i
    belongs to row i; without text_ids they are the image_ids. RowInfo without a partner enter no mean.
    Returns a scalar >= 0 in nats, float64 if a side is, else float32. Raises InputError.
    Source: MIL-NCE (Miech et al. 2020) eq. 1; CLIP (Radford et al. 2021) fig. 3.
    """
    s = samples(image_features, text_features, names=NAMES, half=True)
    s, impl = dispatch.settle(s, None, impl)
    rows = RowInfo(*pair_ids(image_ids, text_ids, s.x, s.y))
    op = dispatch.implementation(impl, s.x, s.y)
    return op.info_nce(s.x, s.y, scale_of(logit_scale, s.x), rows).to(s.dtype)
