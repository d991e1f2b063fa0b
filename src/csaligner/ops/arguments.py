"""Argument checks of the losses and divergences: samples, weights, ids and the logit scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csaligner.checks import InputError, as_features, check_length, check_positive, check_same_dim

from .tiles import compute_dtype

Ids = Tensor | Sequence[Any]


@dataclass(frozen=True)
class Samples:
    """Two checked samples x: (N, d) and y: (M, d), of the same dtype and on the same device.

    weights: (N,), (M,) float64, positive, or None if all are equal. Rows of weight 0 have been removed.
    """

    x: Tensor
    y: Tensor
    weights_x: Tensor | None = None
    weights_y: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of values: float64 if the features are float64, else float32."""
        return compute_dtype(self.x)


def samples(
    x: Any,
    y: Any,
    weights_x: Any = None,
    weights_y: Any = None,
    names: tuple[str, str] = ("x", "y"),
    half: bool = False,
    finite: bool = True,
) -> Samples:
    """Check two samples and their weights. Raises InputError.

    half=True keeps half-precision features, for dispatch.settle; otherwise they are converted to float32. Rows with a
    weight of 0, or False in a boolean mask, are removed before any computation, so their content has no influence.
    finite=False: the caller checks for NaN and infinity.
    """
    x, y = as_features(names[0], x, finite), as_features(names[1], y, finite)
    check_same_dim(names, x, y)
    if x.device != y.device:
        raise InputError(f"{names[0]} is on {x.device} and {names[1]} on {y.device}; move both to the same device")
    x, keep_x = _weighted(x, weights_x, names[0])
    y, keep_y = _weighted(y, weights_y, names[1])
    if x.dtype != y.dtype or not half:
        dtype = torch.promote_types(x.dtype, y.dtype)
        dtype = dtype if half else torch.promote_types(dtype, torch.float32)
        x, y = x.to(dtype), y.to(dtype)
    return Samples(x, y, keep_x, keep_y)


def _weighted(x: Tensor, weights: Any, name: str) -> tuple[Tensor, Tensor | None]:
    if weights is None:
        return x, None
    label = f"weights of {name}"
    check_length(label, weights, len(x), "rows")
    try:
        w = torch.as_tensor(weights, dtype=torch.float64, device=x.device).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{label}: not numeric; wanted one number per row, or a boolean mask") from None
    if w.ndim != 1 or not bool(torch.isfinite(w).all()) or bool((w < 0).any()):
        raise InputError(f"{label}: wanted one finite number >= 0 per row, or a boolean mask")
    keep = w > 0
    if not bool(keep.any()):
        raise InputError(f"{label}: all are 0; at least one row needs a positive weight")
    if not bool(keep.all()):
        x, w = x[keep], w[keep]
    return x, None if bool((w == w[0]).all()) else w


def pair_ids(
    image_ids: Ids | None, text_ids: Ids | None, x: Tensor, y: Tensor, need_pairs: bool = True
) -> tuple[Tensor, Tensor]:
    """Return int64 ids (N,) and (M,), equal for an image and a text that form a pair; unpaired rows keep -1.

    Ids may be integers (-1: unpaired) or any hashables, such as file names (None: unpaired). Without ids, image i and
    text i form a pair; if only text_ids is missing, it defaults to image_ids. need_pairs=False accepts samples without
    a common id. Raises InputError.
    """
    if image_ids is None and text_ids is not None:
        raise InputError("image_ids: missing, but text_ids were given; provide both")
    if image_ids is None and not need_pairs:
        return torch.arange(len(x), device=x.device), torch.arange(len(y), device=x.device)
    if x.shape[0] != y.shape[0] and text_ids is None:
        raise InputError(
            f"{len(x)} image rows and {len(y)} text rows: provide image_ids and text_ids to define the pairs"
        )
    if image_ids is None:
        ids = torch.arange(x.shape[0], device=x.device)
        return ids, ids
    text_ids = image_ids if text_ids is None else text_ids
    check_length("image_ids", image_ids, len(x), "image rows")
    check_length("text_ids", text_ids, len(y), "text rows")
    a, b = _integers(image_ids, text_ids, x.device)
    if need_pairs and not bool((a >= 0).any() if a is b else torch.isin(a[a >= 0], b).any()):
        raise InputError("no image id occurs among the text ids; the rows of a pair need equal ids")
    return a, b


def whole_numbers(name: str, ids: Ids, features: Tensor) -> Tensor:
    """Return integer ids as (N,) int64 on the device of the features. Raises InputError.

    Ids that are compared across ranks, or among several samples, must be integers; row names are not accepted.
    """
    try:
        numbers = torch.as_tensor(ids, device=features.device)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(())
    floats = numbers.is_floating_point() and numbers.shape != (0,)  # torch makes an empty list a float tensor
    if floats or numbers.dtype == torch.bool or numbers.ndim != 1:
        raise InputError(f"{name}: ids must be whole numbers here, -1 for unpaired rows")
    return numbers.detach().to(torch.int64)


def _integers(a: Ids, b: Ids, device: torch.device) -> tuple[Tensor, Tensor]:
    first = _as_integers(a)
    second = first if b is a else _as_integers(b)
    if first is not None and second is not None:
        first, second = first.to(device), second.to(device)
        if second is not first and torch.equal(first, second):
            second = first
        if any(bool((ids < -1).any()) for ids in ((first,) if second is first else (first, second))):
            raise InputError("ids: wanted integers >= 0, or -1 for unpaired rows")
        return first, second
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        raise InputError("image_ids and text_ids: wanted both as whole numbers, or both as lists of names")
    number: dict[Any, int] = {None: -1}
    listed = [[number.setdefault(name, len(number) - 1) for name in ids] for ids in (a, b)]
    return torch.tensor(listed[0], device=device), torch.tensor(listed[1], device=device)


def _as_integers(ids: Ids) -> Tensor | None:
    """Return the ids as int64, or None if they are not one-dimensional integers."""
    if not isinstance(ids, Tensor):
        array = np.asarray(ids)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            return None
        ids = torch.from_numpy(array.astype(np.int64))
    if ids.is_floating_point() or ids.is_complex() or ids.ndim != 1 or ids.dtype == torch.bool:
        return None
    return ids.detach().to(torch.int64)


def scale_of(logit_scale: Any, x: Tensor) -> Tensor:
    """Return the logit scale 1/tau as a scalar tensor on the device of x; keeps its gradient. Raises InputError."""
    check_positive("logit_scale", logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale)
    if isinstance(logit_scale, Tensor):
        return logit_scale.to(x.device).reshape(())
    return torch.scalar_tensor(logit_scale, dtype=torch.float64)
