"""The door of the numerics: what a caller gave, checked once and brought to one dtype and device."""

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
    """x: (N, d); y: (M, d), one dtype, one device.

    weights: (N,), (M,) float64, positive, or None where all are equal. RowInfo of weight 0 are gone.
    """

    x: Tensor
    y: Tensor
    weights_x: Tensor | None = None
    weights_y: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of values: float64 if the features are, else float32."""
        return compute_dtype(self.x)


def samples(
    x: Any,
    y: Any,
    weights_x: Any = None,
    weights_y: Any = None,
    names: tuple[str, str] = ("x", "y"),
    half: bool = False,
) -> Samples:
    """Checks two samples and their weights. Raises InputError.

    half=True keeps half-precision features, for dispatch.settle; else they become float32. A weight of 0, or False in a
    boolean mask, takes the row out before anything is computed, so that its content has no influence to the last bit.
    """
    x, y = as_features(names[0], x), as_features(names[1], y)
    check_same_dim(names, x, y)
    if x.device != y.device:
        raise InputError(f"{names[0]} is on {x.device} and {names[1]} on {y.device}; move them to one device")
    x, keep_x = _weighted(x, weights_x, names[0])
    y, keep_y = _weighted(y, weights_y, names[1])
    dtype = torch.promote_types(x.dtype, y.dtype)
    if not half:
        dtype = torch.promote_types(dtype, torch.float32)
    return Samples(x.to(dtype), y.to(dtype), keep_x, keep_y)


def _weighted(x: Tensor, weights: Any, name: str) -> tuple[Tensor, Tensor | None]:
    if weights is None:
        return x, None
    label = f"weights of {name}"
    check_length(label, weights, len(x), "rows")
    try:
        w = torch.as_tensor(weights, dtype=torch.float64, device=x.device).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{label}: cannot be read as numbers; want one for each row, or a boolean mask") from None
    if w.ndim != 1 or not bool(torch.isfinite(w).all()) or bool((w < 0).any()):
        raise InputError(f"{label}: want one finite number of at least 0 for each row, or a boolean mask")
    keep = w > 0
    if not bool(keep.any()):
        raise InputError(f"{label}: all are 0; at least one row must count")
    if not bool(keep.all()):
        x, w = x[keep], w[keep]
    return x, None if bool((w == w[0]).all()) else w


def pair_ids(
    image_ids: Ids | None, text_ids: Ids | None, x: Tensor, y: Tensor, need_pairs: bool = True
) -> tuple[Tensor, Tensor]:
    """(N,) and (M,) int64 ids, equal where an image and a text belong together; unpaired rows keep -1.

    Ids may be integers (-1: unpaired) or anything hashable, such as file names (None: unpaired). Without ids
    row i belongs to row i; text_ids alone left out are the image_ids. need_pairs=False lets samples pass that have
    nothing in common. Raises InputError.
    """
    if image_ids is None and text_ids is not None:
        raise InputError("image_ids: missing, while text_ids are given; give both")
    if image_ids is None and not need_pairs:
        return torch.arange(len(x), device=x.device), torch.arange(len(y), device=x.device)
    if len(x) != len(y) and text_ids is None:
        raise InputError(
            f"{len(x)} image rows and {len(y)} text rows: give image_ids and text_ids to say which belong together"
        )
    if image_ids is None:
        ids = torch.arange(len(x), device=x.device)
        return ids, ids
    text_ids = image_ids if text_ids is None else text_ids
    check_length("image_ids", image_ids, len(x), "image rows")
    check_length("text_ids", text_ids, len(y), "text rows")
    a, b = _integers(image_ids, text_ids, x.device)
    if need_pairs and not bool(torch.isin(a[a >= 0], b).any()):
        raise InputError("no image id occurs among the text ids; they must be equal where rows belong together")
    return a, b


def whole_numbers(name: str, ids: Ids, features: Tensor) -> Tensor:
    """Ids that mean the same everywhere, (N,) int64 on the device of the features: across ranks, or among several
    samples, names of rows will not do. Raises InputError."""
    try:
        numbers = torch.as_tensor(ids, device=features.device)
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(())
    floats = numbers.is_floating_point() and numbers.shape != (0,)  # an empty list becomes floats
    if floats or numbers.dtype == torch.bool or numbers.ndim != 1:
        raise InputError(f"{name}: ids must be whole numbers here, -1 for a row without a partner")
    return numbers.detach().to(torch.int64)


def _integers(a: Ids, b: Ids, device: torch.device) -> tuple[Tensor, Tensor]:
    both = [_as_integers(ids) for ids in (a, b)]
    if all(ids is not None for ids in both):
        first, second = (torch.as_tensor(ids, device=device) for ids in both)
        if bool((first < -1).any()) or bool((second < -1).any()):
            raise InputError("ids: want integers of at least 0, or -1 for a row without a partner")
        return first, second
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        raise InputError("image_ids and text_ids: want both as whole numbers, or both as lists of names")
    number: dict[Any, int] = {None: -1}
    listed = [[number.setdefault(name, len(number) - 1) for name in ids] for ids in (a, b)]
    return torch.tensor(listed[0], device=device), torch.tensor(listed[1], device=device)


def _as_integers(ids: Ids) -> Tensor | None:
    """The ids as int64 if they are whole numbers in one dimension."""
    if not isinstance(ids, Tensor):
        array = np.asarray(ids)
        if array.dtype.kind not in "iu" or array.ndim != 1:
            return None
        ids = torch.from_numpy(array.astype(np.int64))
    if ids.is_floating_point() or ids.is_complex() or ids.ndim != 1 or ids.dtype == torch.bool:
        return None
    return ids.detach().to(torch.int64)


def scale_of(logit_scale: Any, x: Tensor) -> Tensor:
    """The logit scale 1/tau as a scalar tensor on the device of x, its gradient kept. Raises InputError."""
    check_positive("logit_scale", logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale)
    if isinstance(logit_scale, Tensor):
        return logit_scale.to(x.device).reshape(())
    return torch.tensor(float(logit_scale), dtype=torch.float64)
