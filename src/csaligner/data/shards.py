"""The files of a store, in clip-retrieval's layout: one row per caption, the picture's row repeated for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csaligner.checks import InputError
from csaligner.files import sha256_of, write_atomically

from .manifest import Shard

COLUMNS = ("image_id", "caption", "image_path", "split", "group")
Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Rows:
    """image: (R, d_image); text: (R, d_text); metadata: R tuples in the order of COLUMNS."""

    image: Array
    text: Array
    metadata: Sequence[tuple[str, ...]]


def image_file(number: int) -> str:
    return f"img_emb/img_emb_{number}.npy"


def text_file(number: int) -> str:
    return f"text_emb/text_emb_{number}.npy"


def metadata_file(number: int) -> str:
    return f"metadata/metadata_{number}.parquet"


def write_shard(folder: Path, number: int, rows: Rows, dtype: str) -> Shard:
    """Three files, each under its final name only when whole. The same rows give the same bytes.

    Raises InputError, writing nothing, for values that dtype cannot hold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image, text = _as_dtype("image", rows.image, dtype), _as_dtype("text", rows.text, dtype)
    columns = {name: [row[i] for row in rows.metadata] for i, name in enumerate(COLUMNS)}
    table = pa.table({name: pa.array(values, type=pa.string()) for name, values in columns.items()})
    names = (image_file(number), text_file(number), metadata_file(number))
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
    write_atomically(folder / names[0], lambda path: _save(path, image))
    write_atomically(folder / names[1], lambda path: _save(path, text))
    write_atomically(folder / names[2], lambda path: pq.write_table(table, path))
    images = len({row[0] for row in rows.metadata})
    return Shard(len(rows.metadata), images, {name: sha256_of(folder / name) for name in names})


def read_metadata(folder: Path, number: int) -> dict[str, list[str]]:
    """COLUMNS of one shard."""
    import pyarrow.parquet as pq

    # one plain file: read_table would start a thread pool and look for partitions
    with pq.ParquetFile(folder / metadata_file(number)) as file:
        table = file.read(columns=list(COLUMNS), use_threads=False)
    return {name: table.column(name).to_pylist() for name in COLUMNS}


def map_array(path: Path, shape: tuple[int, int], dtype: str) -> Array:
    """The array in a .npy file, mapped into memory; InputError where it is not as the manifest says."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"store: {path} cannot be read ({error}); embed again") from None
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise InputError(
            f"store: {path} holds {array.shape} {array.dtype}, its manifest says {shape} {dtype}; embed again"
        )
    return array  # type: ignore[no-any-return]


def damaged_files(folder: Path, shards: Iterable[Shard]) -> list[str]:
    """Names of the files that are gone or whose SHA-256 is not the recorded one."""
    return [
        name
        for shard in shards
        for name, digest in shard.files.items()
        if not (folder / name).is_file() or sha256_of(folder / name) != digest
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
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
