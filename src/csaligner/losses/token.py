"""Token-level Cauchy-Schwarz divergence between the tokens of an image and of its caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError, check_choice
from csaligner.ops import token
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth, uses_median
from csaligner.ops.dispatch import IMPLEMENTATIONS
from csaligner.ops.kernels import make_kernel


def token_cauchy_schwarz(
    image_tokens: Tensor,
    text_tokens: Tensor,
    image_mask: Any = None,
    text_mask: Any = None,
    *,
    bandwidth: Bandwidth | Sequence[Bandwidth] = DEFAULT_BANDWIDTH,
    kernel: str = "gaussian",
    impl: str = "auto",
) -> Tensor:
    """Return the mean over b of D_CS between the V tokens of image b and the L tokens of caption b, in one space.

    image_tokens: (B, V, d), text_tokens: (B, L, d), not normalised here. image_mask: (B, V), text_mask: (B, L), True
    or 1 for tokens that are used (None: all); exclude padding and special tokens. Masked tokens have no influence and a
    gradient of 0, even if they are NaN. bandwidth: a number in the unit of the features, several for a mixture, or
    "median" over the unmasked tokens of all pairs. impl: "reference", or one sweep over the pairs ("tiled", "auto").
    Returns a scalar >= 0, float64 if an input is float64, else float32. Raises InputError.
    Source: CS-Aligner (arXiv 2502.17028), the token-level term; D_CS as in cauchy_schwarz_divergence.
    """
    _check_tokens(image_tokens, text_tokens)
    if check_choice("impl", impl, IMPLEMENTATIONS) == "triton":
        raise InputError('impl: "triton" does not support tokens; use "auto" or "tiled"')
    mask_x = _mask("image_mask", image_mask, image_tokens)
    mask_y = _mask("text_mask", text_mask, text_tokens)
    for name, tokens, mask in (("image_tokens", image_tokens, mask_x), ("text_tokens", text_tokens, mask_y)):
        sums = tokens.detach().sum(dim=2, dtype=torch.promote_types(tokens.dtype, torch.float32))
        if not bool((torch.isfinite(sums) | ~mask).all()):
            raise InputError(f"{name}: NaN or infinity in unmasked tokens; mask them or fix the encoder")
    median_masks = (mask_x, mask_y) if uses_median(bandwidth) else (mask_x[:1], mask_y[:1])
    k = make_kernel(
        kernel,
        bandwidth,
        *(t.detach()[: len(m)][m] for t, m in zip((image_tokens, text_tokens), median_masks, strict=True)),
    )
    dtype = torch.promote_types(torch.promote_types(image_tokens.dtype, text_tokens.dtype), torch.float32)
    if impl == "reference":
        return token.dense(image_tokens.to(dtype), text_tokens.to(dtype), mask_x, mask_y, k)
    return token.tiled(image_tokens, text_tokens, mask_x, mask_y, k).to(dtype)


def _check_tokens(x: Tensor, y: Tensor) -> None:
    for name, tokens in (("image_tokens", x), ("text_tokens", y)):
        if tokens.ndim != 3 or 0 in tokens.shape or not tokens.is_floating_point():
            raise InputError(
                f"{name}: got {tokens.dtype} of shape {tuple(tokens.shape)}, wanted floats (pairs, tokens, dimensions)"
            )
    if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        raise InputError(
            f"image_tokens {tuple(x.shape)} and text_tokens {tuple(y.shape)}: wanted the same number of pairs and of "
            "dimensions (an adapter maps both into one space)"
        )


def _mask(name: str, mask: Any, tokens: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    mask = torch.as_tensor(mask, device=tokens.device)
    if mask.shape != tokens.shape[:2]:
        raise InputError(
            f"{name}: got shape {tuple(mask.shape)}, wanted {tuple(tokens.shape[:2])}, one entry per token"
        )
    counts: Tensor = mask != 0
    empty = ~counts.any(dim=1)
    if bool(empty.any()):
        raise InputError(f"{name}: pair {int(empty.nonzero()[0])} has no unmasked token; remove such pairs")
    return counts
