"""Exceptions and argument checks of the public API.

Messages give the name, the value, what was wanted and how to fix it. Only public entry points call the checks. torch is
imported only when an array is checked, since the command line needs only the errors.
"""

from __future__ import annotations

import difflib
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class CSAlignerError(Exception):
    """Base class of all csaligner errors; the message is one line.

    Control characters and line breaks in the message, which may quote files, are replaced by spaces.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in str(message)))


class InputError(CSAlignerError, ValueError):
    """An invalid argument, file or setting."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?`, or the list of known names if none is similar."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names)


def check_choice(name: str, value: str, known: Iterable[str]) -> str:
    names = list(known)
    if value not in names:
        raise InputError(f"{name}: {value!r} is not known; {nearest(value, names)}")
    return value


def check_positive(name: str, value: Any) -> float:
    """Return a finite number above zero (for example a bandwidth). Raises InputError."""
    return _check_number(name, value, minimum_excluded=True)


def check_non_negative(name: str, value: Any) -> float:
    """Return a finite number of at least zero (for example a weight). Raises InputError."""
    return _check_number(name, value, minimum_excluded=False)


def _check_number(name: str, value: Any, *, minimum_excluded: bool) -> float:
    wanted = "a finite number above 0" if minimum_excluded else "a finite number of at least 0"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name}: got {value!r}, wanted {wanted}") from None
    if not 0 <= number < math.inf or (minimum_excluded and number == 0):  # torch.compile cannot trace isfinite
        raise InputError(f"{name}: got {number:g}, wanted {wanted}")
    return number


def as_features(name: str, value: Any, finite: bool = True) -> Tensor:
    """Convert an array-like of shape (N, d) to a finite floating-point tensor; integers become float32.

    Raises InputError for a wrong number of dimensions, no rows, no columns, and NaN or infinity (with the first such
    row and their number). finite=False: NaN and infinity are left to check_finite.
    """
    import torch

    if isinstance(value, (list, tuple)) and value and all(isinstance(row, torch.Tensor) for row in value):
        value = _stacked_tensors(name, value)
    x = value if isinstance(value, torch.Tensor) else _as_tensor(name, value)
    if x.layout != torch.strided or x.is_complex() or x.is_meta or x.is_quantized:
        raise InputError(f"{name}: got a tensor of {x.layout}, {x.dtype}, on {x.device}; wanted dense real numbers")
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise InputError(f"{name}: got shape {tuple(x.shape)}, wanted (rows, dimensions) with at least one of each")
    if not x.is_floating_point() or x.dtype.itemsize == 1:
        x = x.to(torch.float32)
    if finite:
        check_finite(name, x)
    return x


def check_finite(name: str, x: Tensor) -> None:
    """Raise InputError if a row of x, (N, d), contains NaN or infinity."""
    import torch

    if math.isfinite(float(x.detach().sum())):  # a sum that overflows is checked row by row
        return
    finite = torch.isfinite(x).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        first = int((~finite).nonzero()[0])
        raise InputError(f"{name}: {bad} of {len(x)} rows contain NaN or infinity (first: row {first}); remove them")


def check_same_dim(names: tuple[str, str], x: Tensor, y: Tensor) -> None:
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"{names[0]} has {x.shape[1]} dimensions and {names[1]} has {y.shape[1]}; "
            "both must be in the same space (map them with an adapter)"
        )


def check_length(name: str, values: Sequence[Any] | Tensor, wanted: int, of: str) -> None:
    if len(values) != wanted:
        raise InputError(f"{name}: got {len(values)} entries for {wanted} {of}; give one per item")


def check_rows(name: str, value: Any) -> Tensor:
    """as_features, with warnings for a file or a user's array.

    Warns about zero rows, which have no direction, and about 8-bit integers of which every column is spread evenly
    over the whole range: these are packed bits or pixels.
    """
    x = as_features(name, value)
    zero = (~x.any(dim=1)).nonzero()[:, 0]
    if len(zero):
        warn_caller(f"{name}: {len(zero)} of {len(x)} rows are zero (first: row {int(zero[0])}); remove them")
    low = packed_bits(x, str(getattr(value, "dtype", "")))
    if low is not None:
        warn_caller(
            f"{name}: its columns fill {low}..{low + 255} and look like packed bits; unpack them: np.unpackbits"
        )
    return x


def packed_bits(x: Tensor, dtype: str) -> int | None:
    """Return the lowest value (0 or -128) of 8-bit rows that look like packed bits or pixels, None for others.

    x: (N, d); dtype: the name of the number format they were stored in.
    """
    if dtype.removeprefix("torch.") not in {"uint8", "int8"} or len(x) < MIN_ROWS:
        return None
    filled = bool((x.amax(dim=0) - x.amin(dim=0) > 0.75 * 255).all())
    if not filled or float(x.std(dim=0).mean()) <= EVEN_DEVIATION:
        return None
    return -128 if bool((x < 0).any()) else 0


MIN_ROWS = 16  # fewer say nothing about the range of a column
EVEN_DEVIATION = 60.0  # evenly spread 8-bit integers have 74; quantised embeddings, which fill the range too, 30 to 45


def warn_caller(message: str) -> None:
    """Warn at the line of the user's code that called csaligner."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "csaligner":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _as_tensor(name: str, value: Any) -> Tensor:
    """A tensor of anything NumPy reads as numbers, object arrays of equal rows and pandas' nullable types included.

    Arrays that torch cannot share (read-only, negative strides, another byte order, longdouble) are copied.
    """
    import numpy as np
    import torch

    try:
        array = _stacked(name, _as_array(value))
        if array.dtype == object:  # a table with missing values, which become NaN
            array = value.to_numpy(np.float64, na_value=np.nan) if hasattr(value, "iloc") else array.astype(np.float64)
        if array.dtype.kind not in "biufc":
            raise InputError(f"{name}: holds {array.dtype.name}, wanted numbers")
        array = array.astype(np.float64 if array.dtype.char == "g" else array.dtype.newbyteorder("="), copy=False)
        if not array.flags.writeable or any(stride < 0 or stride % array.itemsize for stride in array.strides):
            array = array.copy()
        return torch.as_tensor(array)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: cannot be read as an array of numbers ({error})") from None


def _stacked_tensors(name: str, rows: Sequence[Tensor]) -> Tensor:
    import torch

    for number, row in enumerate(rows):
        if row.shape != rows[0].shape:
            raise InputError(
                f"{name}: row {number} has {row.numel()} numbers, row 0 has {rows[0].numel()}; give all the same"
            )
    return torch.stack(list(rows))


def _as_array(value: Any) -> Any:
    import numpy as np

    if np.ma.isMaskedArray(value):
        return np.ma.filled(value.astype(np.float64), np.nan)
    if hasattr(value, "toarray"):
        raise TypeError("a sparse matrix; give value.toarray()")
    try:
        return np.asarray(value)
    except ValueError:
        if not isinstance(value, (list, tuple)):
            raise
        rows = np.empty(len(value), dtype=object)
        for number, row in enumerate(value):
            rows[number] = row
        return rows


def _stacked(name: str, array: Any) -> Any:
    """A one-dimensional object array of rows as (rows, dimensions); InputError for missing and ragged rows."""
    import numpy as np

    if array.dtype == object and array.ndim == 2 and array.shape[1] == 1 and np.ndim(array[0, 0]):
        array = array[:, 0]  # a table with one column of rows
    if array.dtype != object or array.ndim != 1 or not len(array):
        return array
    rows = [np.asarray(row) for row in array]
    for number, row in enumerate(rows):
        if row.dtype == object and row.ndim == 0:
            raise InputError(f"{name}: row {number} is {array[number]!r}, wanted numbers; remove it")
        if row.shape != rows[0].shape:
            raise InputError(
                f"{name}: row {number} has {row.size} numbers, row 0 has {rows[0].size}; give all the same"
            )
    return np.stack(rows)
