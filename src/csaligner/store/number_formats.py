"""Number formats of embedding services: base64, half precision, 8-bit integers and packed bits, as rows of numbers."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np

from csaligner.checks import InputError, check_choice

AUTO = "auto"
CODES = {"float32": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}
DTYPES = (AUTO, *CODES)
INTEGERS = {"int8": (-128, 127), "uint8": (0, 255), "binary": (-128, 127), "ubinary": (0, 255)}
LIMITS = (1e-4, 1e6)  # of the largest number of a vector in float32; other formats read as float32 lie outside
SHORTEST = 16  # characters of base64 that are taken for a vector without being told


def check_dtype(option: str, dtype: str) -> str:
    """Return a format of DTYPES; `binary` are the bits of `ubinary`, minus 128. Raises InputError."""
    return check_choice(option, dtype, DTYPES)


def decoded(value: Any, dtype: str = AUTO) -> Any:
    """Decode one vector, base64 text or bytes, to numbers of the format; None if it is none.

    auto: little-endian float32, as OpenAI, Cohere and Voyage send it, and only if the numbers are plausible.
    """
    if isinstance(value, str):
        if len(value) % 4 or (dtype == AUTO and len(value) < SHORTEST):
            return None
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            return None
    code = np.dtype(CODES.get(dtype, "<f4"))
    if not value or len(value) % code.itemsize:
        return None
    row = np.frombuffer(value, dtype=code)
    if code.kind != "f":
        return row
    low, high = LIMITS
    most = float(np.abs(row).max())  # NaN and infinity fail every comparison below
    return row if most == 0 or (low if dtype == AUTO else 0) <= most < high else None


def converted(rows: Any, dtype: str, name: str) -> Any:
    """Convert rows of numbers in the format `dtype` to vectors, (N, d); auto: unchanged.

    int8: unchanged; uint8: minus 128; ubinary, binary: eight dimensions of -1 and 1 per number, the highest bit first.
    Integers without their scale are directions only: lengths are unknown, and if each column had a scale of its own,
    the directions are those of the scaled columns. Raises InputError for numbers outside the format; name: for it.
    """
    if dtype == AUTO or dtype.startswith("float"):
        return rows
    array = _stacked(rows, name)
    low, high = INTEGERS[dtype]
    found = array.dtype.name
    if array.dtype.kind not in "iu":
        whole = array.dtype.kind == "f" and bool((array == np.round(array)).all())
        array = array.astype(np.int64) if whole else array
    if array.dtype.kind not in "iu" or (array.size and not (low <= array.min() and array.max() <= high)):
        raise InputError(f"{name}: holds {found} numbers, wanted whole numbers from {low} to {high} for {dtype}")
    wide = array.astype(np.int16)
    if dtype in ("int8", "uint8"):
        return (wide if dtype == "int8" else wide - 128).astype(np.float32)
    bits = np.unpackbits((wide if dtype == "ubinary" else wide + 128).astype(np.uint8), axis=1)
    return 2 * bits.astype(np.float32) - 1


def _stacked(rows: Any, name: str) -> Any:
    """Rows as one array (N, d). Raises InputError for missing and ragged rows."""
    if getattr(rows, "ndim", 1) == 2:
        return np.asarray(rows)
    listed: Sequence[Any] = list(rows)
    for number, row in enumerate(listed):
        if row is None or np.ndim(row) != 1:
            raise InputError(f"{name}: row {number} is no vector; remove it")
        if len(row) != len(listed[0]):
            raise InputError(
                f"{name}: row {number} has {len(row)} numbers, row 0 has {len(listed[0])}; give all the same"
            )
    return np.stack([np.asarray(row) for row in listed])
