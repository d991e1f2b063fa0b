"""Argument checks at the door, one message style: the name, the value that was given, how to fix it.

Inner functions trust their callers; only public entry points call these. Nothing here imports torch before an array is
checked: the command line needs the errors alone.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class CSAlignerError(Exception):
    """Base of every error that csaligner raises on purpose; its text is one line.

    Texts of files get into messages: what a terminal would obey, or break the line at, becomes a space.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in str(message)))


class InputError(CSAlignerError, ValueError):
    """An argument, a file or a setting that cannot be used as it is."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or the list of what is known where nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names)


def check_choice(name: str, value: str, known: Iterable[str]) -> str:
    names = list(known)
    if value not in names:
        raise InputError(f"{name}: {value!r} is not known; {nearest(value, names)}")
    return value


def check_positive(name: str, value: Any) -> float:
    """A finite number above zero (a bandwidth sigma, a logit scale)."""
    return _check_number(name, value, minimum_excluded=True)


def check_non_negative(name: str, value: Any) -> float:
    """A finite number, zero allowed (a weight lambda)."""
    return _check_number(name, value, minimum_excluded=False)


def _check_number(name: str, value: Any, *, minimum_excluded: bool) -> float:
    wanted = "a finite number above 0" if minimum_excluded else "a finite number of at least 0"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: got {value!r}, wanted {wanted}") from None
    if not math.isfinite(number) or number < 0 or (minimum_excluded and number == 0):
        raise InputError(f"{name}: got {number:g}, wanted {wanted}")
    return number


def as_features(name: str, value: Any) -> Tensor:
    """Anything array-like of shape (N, d) as a finite floating tensor; integer arrays become float32.

    Raises InputError for another number of dimensions, no rows, no columns, NaN or infinity (with the first
    bad row and how many there are).
    """
    import numpy as np
    import torch

    try:
        x = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: cannot be read as an array of numbers ({error})") from None
    if x.layout != torch.strided or x.is_complex() or x.is_meta or x.is_quantized:
        raise InputError(f"{name}: got a tensor of {x.layout}, {x.dtype}, on {x.device}; wanted dense real numbers")
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise InputError(f"{name}: got shape {tuple(x.shape)}, wanted (rows, dimensions) with at least one of each")
    if not x.is_floating_point():
        x = x.to(torch.float32)
    finite = torch.isfinite(x).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        first = int((~finite).nonzero()[0])
        raise InputError(f"{name}: {bad} of {len(x)} rows hold NaN or infinity (first: row {first}); remove them")
    return x


def check_same_dim(names: tuple[str, str], x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"{names[0]} has {x.shape[1]} dimensions and {names[1]} has {y.shape[1]}; "
            "both must lie in one space (an adapter maps them there)"
        )


def check_length(name: str, values: Sequence[Any] | Tensor, wanted: int, of: str) -> None:
    if len(values) != wanted:
        raise InputError(f"{name}: got {len(values)} entries for {wanted} {of}; give one each")
