"""Shard files in clip-retrieval's layout: one row per caption, with the image's row repeated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csaligner.checks import InputError
from csaligner.files import sha256_of, write_atomically
from csaligner.parquet import open_parquet
from csaligner.types import Modality

from .manifest import Shard

FOLDERS: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}
METADATA = "metadata"
NPY_HEADER = 128  # header bytes of a .npy file
COLUMNS = ("image_id", "caption", "image_path", "split", "group")
Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class ShardRows:
    """image: (R, d_image); text: (R, d_text); metadata: R tuples in the order of COLUMNS. None: no such modality."""

    image: Array | None
    text: Array | None
    metadata: Sequence[tuple[str, ...]]


def array_file(side: Modality, number: int) -> str:
    folder = FOLDERS[side]
    return f"{folder}/{folder}_{number}.npy"


def metadata_file(number: int) -> str:
    return f"{METADATA}/metadata_{number}.parquet"


def write_shard(folder: Path, number: int, rows: ShardRows, dtype: str) -> Shard:
    """Write the two or three files of a shard, each atomically. The same rows give the same bytes.

    Raises InputError, without writing, for values beyond the range of dtype.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    given: dict[Modality, Array | None] = {"image": rows.image, "text": rows.text}
    arrays = {side: _as_dtype(side, array, dtype) for side, array in given.items() if array is not None}
    columns = {name: [row[i] for row in rows.metadata] for i, name in enumerate(COLUMNS)}
    table = pa.table({name: pa.array(values, type=pa.string()) for name, values in columns.items()})
    names = [*(array_file(side, number) for side in arrays), metadata_file(number)]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
    for side, array in arrays.items():
        write_atomically(folder / array_file(side, number), partial(_save, array=array))
    write_atomically(folder / names[-1], lambda path: pq.write_table(table, path))
    images = len({row[0] for row in rows.metadata}) if rows.image is not None else 0
    return Shard(len(rows.metadata), images, {name: sha256_of(folder / name) for name in names})


def read_metadata(path: Path) -> Any:
    """Return the pyarrow table of one metadata file, COLUMNS only."""
    with open_parquet(path) as file:
        return file.read(COLUMNS)


def metadata_columns(path: Path) -> tuple[list[str], int]:
    """Return column names and number of rows from the file's footer. Raises ValueError without one."""
    with open_parquet(path) as file:
        return file.names, file.rows


def map_array(path: Path, shape: tuple[int, int], dtype: str) -> Array:
    """Memory-map a .npy file. Raises InputError unless it has this shape and dtype."""
    if not path.is_file():  # reading a pipe could block
        raise InputError(f"store: {path} cannot be read (no such file); embed again")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python, which raises many classes
        reason = _truncation(path, shape, dtype) or error
        raise InputError(f"store: {path} cannot be read ({reason}); delete it and embed again") from None
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise InputError(
            f"store: {path} holds {array.shape} {array.dtype}, wanted {shape} {dtype}; delete it and embed again"
        )
    return array  # type: ignore[no-any-return]


def check_file(folder: Path, name: str, digest: str) -> None:
    """Raise InputError if a file's SHA-256 differs from the recorded one ("": none recorded)."""
    if digest and sha256_of(folder / name) != digest:
        raise InputError(f"store: {folder}: {name} is damaged (its SHA-256 differs); delete it and embed again")


def is_there(folder: Path, shard: Shard) -> bool:
    """Return whether all files of a shard exist, without reading them."""
    return all((folder / name).is_file() for name in shard.files)


def damaged_files(folder: Path, shards: Iterable[Shard]) -> list[str]:
    """Return the files that are missing or whose SHA-256 differs from the recorded one ("": none recorded)."""
    return [
        name
        for shard in shards
        for name, digest in shard.files.items()
        if not (folder / name).is_file() or (digest and sha256_of(folder / name) != digest)
    ]


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files of interrupted writes."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        path.unlink()


def _as_dtype(side: str, array: Array, dtype: str) -> Array:
    """Convert an array to dtype. Raises InputError if finite values would overflow."""
    largest, limit = float(np.abs(array).max(initial=0)), float(np.finfo(dtype).max)
    if largest > limit:
        raise InputError(
            f"dtype: the largest number of {dtype} is {limit:g}, the {side} features reach {largest:g}; use "
            + ("float32 and a new folder" if dtype == "float16" else "smaller features")
        )
    return array.astype(dtype)


def _save(path: Path, array: Array) -> None:
    """Like np.save, which hides the reason if the disk is full."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")


def _truncation(path: Path, shape: tuple[int, int], dtype: str) -> str:
    """Return a reason if the file is smaller than its header and values, else ""."""
    least = NPY_HEADER + shape[0] * shape[1] * np.dtype(dtype).itemsize
    size = path.stat().st_size if path.is_file() else least
    return f"it is truncated: {size:,} bytes, wanted {least:,}" if size < least else ""
