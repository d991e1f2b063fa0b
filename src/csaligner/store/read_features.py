"""Feature files: .npy, .npz, .safetensors, .parquet, .json and .jsonl, read without unpickling."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from csaligner.checks import InputError, check_rows, nearest
from csaligner.parquet import open_parquet
from csaligner.remote import local
from csaligner.types import EncoderInfo, Modality

from .json_vectors import Choice, read_json_vectors
from .number_formats import AUTO, check_dtype, converted, decoded

SMALL, MAX_RATIO = 64 << 20, 50  # bytes up to which the compression of .npz is not checked; limit above


def load_features(path: Path | str, key: str | None = None, option: str = "key", dtype: str = AUTO) -> Tensor:
    """Read (N, d) floating features in the precision of the file; integers and JSON become float32.

    path: a file, or the URL of one on object storage (see remote.py).
    key: name of the array in .npz and .safetensors, of the column in .parquet, of the field or Cohere's type in .json
    and .jsonl, or the number of a part (N, d) of a .npy of shape (parts, N, d); required if there are several.
    option: the name of `key` in messages. dtype: number format of integers and base64, see
    number_formats.converted; auto: integers as they are, base64 of float32.
    Warns about zero rows and packed bits. Raises InputError for a missing or unreadable file, an unknown key, another
    shape, missing or ragged rows, NaN or infinity.
    """
    return check_rows(str(path), read_array(path, key, option, dtype))


def read_array(path: Path | str, key: str | None = None, option: str = "key", dtype: str = AUTO) -> Any:
    """Read the array of load_features without a check of its rows; .parquet gives an array of rows, JSON a list."""
    path = local(path)
    check_dtype("dtype", dtype)
    if not path.is_file():
        raise InputError(f"features: no such file: {path}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"features: {path}: {path.suffix or 'no suffix'} is not known; wanted {', '.join(READERS)}")
    try:
        return converted(*reader(path, key, dtype), str(path))
    except _Choice as error:
        raise InputError(f"{option}: {error}") from None
    except InputError:
        raise
    except Exception as error:  # the errors of the libraries have no common class
        reason = " ".join(str(error).split())
        raise InputError(f"features: {path} cannot be read as {path.suffix} ({reason})") from None


def precomputed_info(
    name: str, modality: Modality, dim: int, *, revision: str = "unknown", normalized: bool = False
) -> EncoderInfo:
    """Return the EncoderInfo of imported features; `name` and `revision` distinguish stores."""
    return EncoderInfo(f"precomputed:{name}", revision, modality, dim, {}, normalized)


class _Choice(ValueError):
    """No key for several arrays, or an unknown key."""


def _npy(path: Path, key: str | None, dtype: str) -> tuple[Any, str]:
    return _whole_npy(path, key), dtype


def _whole_npy(path: Path, key: str | None) -> Any:
    with path.open("rb") as file:
        _check_header(file, path.stat().st_size)
    found = np.load(path, allow_pickle=False)
    if found.ndim == 3 and len(found) < 10:  # paired features in one array, (2, N, d)
        return found[
            int(_pick(path, key, [str(number) for number in range(len(found))], f"has the shape {found.shape}"))
        ]
    if key is not None:
        raise _Choice(f"{path} holds one array of shape {found.shape}; remove the key {key!r}")
    return found


def _npz(path: Path, key: str | None, dtype: str) -> tuple[Any, str]:
    with zipfile.ZipFile(path) as members, np.load(path, allow_pickle=False) as arrays:
        name = _pick(path, key, arrays.files)
        info = members.getinfo(name if name in members.namelist() else f"{name}.npy")
        if info.file_size > max(SMALL, MAX_RATIO * info.compress_size):
            raise ValueError(f"{info.compress_size:,} bytes claim to hold {info.file_size:,}")
        with members.open(info) as file:
            _check_header(file, info.file_size)
        return arrays[name], dtype


def _check_header(file: IO[bytes], size: int) -> None:
    """Raise ValueError if the shape in the header exceeds the file; NumPy would allocate the memory first."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if math.prod(shape) * dtype.itemsize > size or min(shape, default=0) < 0:
        raise ValueError(f"it is truncated: {size:,} bytes for {shape} {dtype}")


def _safetensors(path: Path, key: str | None, dtype: str) -> tuple[Any, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(_pick(path, key, list(file.keys()))), dtype


def _json(path: Path, key: str | None, dtype: str) -> tuple[Any, str]:
    try:
        return read_json_vectors(path, key, dtype)
    except Choice as error:
        _pick(path, key, error.names)
        raise


def _parquet(path: Path, key: str | None, dtype: str) -> tuple[Any, str]:
    import pyarrow as pa

    with open_parquet(path) as file:
        kinds = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
        tests = [test for kind in kinds if (test := getattr(pa.types, f"is_{kind}", None))]
        lists = [field.name for field in file.schema if any(test(field.type) for test in tests)]
        if not lists:
            return _encoded_column(path, file, key, dtype), dtype
        column = file.read([_pick(path, key, lists)]).column(0)
    return column.to_numpy(), dtype


def _encoded_column(path: Path, file: Any, key: str | None, dtype: str) -> Any:
    """Read the column of vectors in base64 or bytes. Raises InputError if there is none."""
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    names = [field.name for field in file.schema if any(test(field.type) for test in kinds)]
    for name in names if key is None else [_pick(path, key, names)]:
        rows = [None if value is None else decoded(value, dtype) for value in file.read([name]).column(0).to_pylist()]
        if rows and all(row is not None for row in rows):
            found = np.empty(len(rows), dtype=object)
            found[:] = rows
            return found
    raise InputError(
        f"features: {path} has no column of lists or of {'float32' if dtype == AUTO else dtype} in base64; write each "
        "row of features as one list, or give the format of the base64, --text-dtype"
    )


def _pick(path: Path, key: str | None, names: Collection[str], found: str = "") -> str:
    """Return `key`, or the only name without one. Raises _Choice; found: what the file holds, for its message."""
    if key is None:
        if len(names) == 1:
            return next(iter(names))
        raise _Choice(f"{path} {found or f'holds {len(names)} arrays'}; choose one of {', '.join(names)}")
    if key not in names:
        raise _Choice(f"{path} holds no array {key!r}; {nearest(key, names)}")
    return key


READERS: Mapping[str, Callable[[Path, str | None, str], tuple[Any, str]]] = {  # rows and their number format
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".json": _json,
    ".jsonl": _json,
}
