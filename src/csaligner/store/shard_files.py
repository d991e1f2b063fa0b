"""The files of a store, in clip-retrieval's layout: one row per caption, the picture's row repeated for each."""

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
from csaligner.parsing import open_parquet
from csaligner.types import Modality

from .manifest import Shard

FOLDERS: dict[Modality, str] = {"image": "img_emb", "text": "text_emb"}
METADATA = "metadata"
NPY_HEADER = 128  # bytes before the values in a .npy file of ours
COLUMNS = ("image_id", "caption", "image_path", "split", "group")
Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class ShardRows:
    """image: (R, d_image); text: (R, d_text); metadata: R tuples in the order of COLUMNS. None: no such side."""

    image: Array | None
    text: Array | None
    metadata: Sequence[tuple[str, ...]]


def array_file(side: Modality, number: int) -> str:
    folder = FOLDERS[side]
    return f"{folder}/{folder}_{number}.npy"


def metadata_file(number: int) -> str:
    return f"{METADATA}/metadata_{number}.parquet"


def write_shard(folder: Path, number: int, rows: ShardRows, dtype: str) -> Shard:
    """Two or three files, each under its final name only when whole. The same rows give the same bytes.

    Raises InputError, writing nothing, for values that dtype cannot hold.
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
    """The pyarrow table of one metadata file, COLUMNS only."""
    # one plain file: read_table would start a thread pool and look for partitions
    with open_parquet(path) as file:
        return file.read(columns=list(COLUMNS), use_threads=False)


def metadata_columns(path: Path) -> tuple[list[str], int]:
    """Names of the columns and number of rows, from the file's footer; ValueError where there is none."""
    with open_parquet(path) as file:
        return list(file.schema_arrow.names), int(file.metadata.num_rows)


def map_array(path: Path, shape: tuple[int, int], dtype: str) -> Array:
    """The array in a .npy file, mapped into memory; InputError where it is not as the manifest says."""
    if not path.is_file():  # a pipe would never end
        raise InputError(f"store: {path} cannot be read (no such file); embed again")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python, which fails in many ways
        reason = _cut_short(path, shape, dtype) or error
        raise InputError(f"store: {path} cannot be read ({reason}); delete it and embed again") from None
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise InputError(
            f"store: {path} holds {array.shape} {array.dtype}, its manifest says {shape} {dtype}; "
            "delete it and embed again"
        )
    return array  # type: ignore[no-any-return]


def check_file(folder: Path, name: str, digest: str) -> None:
    """Read it once; InputError where its SHA-256 is not the one that was written down ("": none was)."""
    if digest and sha256_of(folder / name) != digest:
        raise InputError(
            f"store: {folder}: {name} is not as it was written (its SHA-256 differs); delete it and embed again"
        )


def is_there(folder: Path, shard: Shard) -> bool:
    """Has none of its files been lost? Contents are not read."""
    return all((folder / name).is_file() for name in shard.files)


def damaged_files(folder: Path, shards: Iterable[Shard]) -> list[str]:
    """Names of the files that are gone or whose SHA-256 is not the recorded one ("": none was recorded)."""
    return [
        name
        for shard in shards
        for name, digest in shard.files.items()
        if not (folder / name).is_file() or (digest and sha256_of(folder / name) != digest)
    ]


def remove_temporaries(folder: Path) -> None:
    """What a killed writer left behind."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        path.unlink()


def _as_dtype(side: str, array: Array, dtype: str) -> Array:
    """The array in that precision; InputError rather than infinity where its finite values are too large."""
    largest, limit = float(np.abs(array).max(initial=0)), float(np.finfo(dtype).max)
    if largest > limit:
        raise InputError(
            f"dtype: {dtype} holds up to {limit:g}, the {side} features reach {largest:g}; use "
            + ("float32 and a new folder" if dtype == "float16" else "smaller features")
        )
    return array.astype(dtype)


def _save(path: Path, array: Array) -> None:
    """As np.save, which hides the reason where the disk is full."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")


def _cut_short(path: Path, shape: tuple[int, int], dtype: str) -> str:
    """The reason in words where the file is smaller than its header and values."""
    least = NPY_HEADER + shape[0] * shape[1] * np.dtype(dtype).itemsize
    size = path.stat().st_size if path.is_file() else least
    return f"it is cut short: {size:,} bytes, wanted {least:,}" if size < least else ""
