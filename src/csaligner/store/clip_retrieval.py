"""Feature folders of clip-retrieval, opened as stores without copying."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csaligner.checks import InputError
from csaligner.datasets.split import split_of
from csaligner.parquet import open_parquet
from csaligner.types import EncoderInfo, Modality

from .manifest import Manifest, Shard
from .shard_files import COLUMNS, FOLDERS, METADATA
from .store import Store

NUMBERED = re.compile(r".*?_(\d+)\.(?:npy|parquet)")
IDS = ("image_id", "image_path", "key")  # the first of these columns names the images
HEAD = 1 << 20


def is_clip_retrieval(folder: Path) -> bool:
    """Return whether a folder holds numbered arrays that csaligner did not write (its metadata has other columns)."""
    if not any(_numbered(folder, name) for name in FOLDERS.values()):
        return False
    metadata = _numbered(folder, METADATA)
    return not metadata or not set(COLUMNS) <= set(_parquet_columns(next(iter(metadata.values()))))


def open_clip_retrieval(
    folder: Path | str, name: str = "clip-retrieval", revision: str = "unknown", *, dataset: str | None = None
) -> Store:
    """Open a folder of img_emb/img_emb_0.npy, text_emb/text_emb_0.npy, metadata/metadata_0.parquet, ... as a store.

    Shards are in the order of their numbers; rows are aligned by position. One of the two feature folders and the
    metadata may be missing.

    name, revision: the model, recorded as "precomputed:<name>"; clip-retrieval does not record it, so csaligner can
    only distinguish the features of two models by this name. Image ids come from the column image_id, image_path or
    key, else they are row numbers; captions come from the column caption; splits follow the hash rule of split.py.

    Raises InputError for shards that do not match.
    """
    folder = Path(folder)
    arrays: dict[Modality, dict[int, Path]] = {side: _numbered(folder, FOLDERS[side]) for side in FOLDERS}
    arrays = {side: files for side, files in arrays.items() if files}
    if not arrays:
        raise InputError(f"store: {folder} has no img_emb/img_emb_0.npy or text_emb/text_emb_0.npy")
    metadata = _numbered(folder, METADATA)
    numbers = _same_numbers(folder, [*arrays.values(), *([metadata] if metadata else [])])
    heads = {side: [_head(files[n]) for n in numbers] for side, files in arrays.items()}
    rows = _same_rows(folder, numbers, heads)
    files = [[*(arrays[side][n] for side in arrays), *([metadata[n]] if metadata else [])] for n in numbers]
    infos = {side: _info(name, revision, side, arrays[side][numbers[0]], heads[side]) for side in arrays}
    tables = _Tables([metadata.get(n) for n in numbers], rows)
    shards = tuple(
        Shard(n, n if "image" in arrays else 0, {str(path.relative_to(folder)): "" for path in paths})
        for n, paths in zip(rows, files, strict=True)
    )
    manifest = Manifest(
        plan=_digest(folder, [path for paths in files for path in paths]),
        dataset=dataset or folder.resolve().name,
        attribution="",
        image=infos.get("image"),
        text=infos.get("text"),
        dtype=next(iter(heads.values()))[0][1],
        shard_size=max(rows),
        shards=shards,
        complete=True,
    )
    store = Store(folder, manifest, metadata=tables)
    store.check()
    return store


class _Tables:
    """COLUMNS computed from clip-retrieval's metadata, or from row numbers without metadata."""

    def __init__(self, paths: Sequence[Path | None], rows: Sequence[int]) -> None:
        self._paths, self._rows = paths, rows

    def __call__(self, number: int) -> Any:
        import pyarrow as pa

        path, n = self._paths[number], self._rows[number]
        start = sum(self._rows[:number])
        columns: dict[str, list[Any]] = {}
        if path is not None:
            with open_parquet(path) as file:
                wanted = [name for name in (*IDS, "caption") if name in file.names]
                columns = file.read(wanted).to_pydict()
        if any(len(values) != n for values in columns.values()):
            raise InputError(f"store: {path} has another number of rows than its features ({n}); copy it again")
        named = next((columns[name] for name in IDS if name in columns), range(start, start + n))
        ids = [str(start + i if value is None else value) for i, value in enumerate(named)]
        captions = [text if isinstance(text, str) else "" for text in columns.get("caption", [""] * n)]
        paths = [text if isinstance(text, str) else "" for text in columns.get("image_path", [""] * n)]
        splits = [split_of(image_id) for image_id in ids]
        return pa.table(dict(zip(COLUMNS, (ids, captions, paths, splits, ids), strict=True)))


def _numbered(folder: Path, name: str) -> dict[int, Path]:
    """Return number -> file, in numerical order."""
    found = {}
    if (folder / name).is_dir():
        for path in (folder / name).iterdir():
            match = NUMBERED.fullmatch(path.name)
            if match and not path.name.startswith(".") and path.is_file():
                found[int(match[1])] = path
    return dict(sorted(found.items()))


def _same_numbers(folder: Path, parts: Sequence[dict[int, Path]]) -> list[int]:
    numbers = list(parts[0])
    for part in parts[1:]:
        alone = sorted(set(part) ^ set(numbers))
        if alone:
            raise InputError(f"store: {folder}: shard {alone[0]} is missing in one of its folders; copy it again")
    return numbers


def _head(path: Path) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype from the header of a file."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python, which raises many classes
        raise InputError(f"store: {path} cannot be read as an array of numbers ({error}); copy it again") from None
    if array.ndim != 2 or array.dtype.name not in ("float16", "float32"):
        raise InputError(f"store: {path} holds {array.shape} {array.dtype}, wanted (rows, d) float16 or float32")
    return array.shape, array.dtype.name


def _same_rows(
    folder: Path, numbers: Sequence[int], heads: dict[Modality, list[tuple[tuple[int, ...], str]]]
) -> list[int]:
    first = next(iter(heads.values()))
    for side, found in heads.items():
        for number, (shape, dtype), (other, _) in zip(numbers, found, first, strict=True):
            if shape[0] != other[0]:
                raise InputError(f"store: {folder}: shard {number} has {other[0]} images and {shape[0]} texts")
            wanted = f"{found[0][0][1]}-d {first[0][1]}"
            if f"{shape[1]}-d {dtype}" != wanted:
                raise InputError(
                    f"store: {folder}: the {side} shard {number} holds {shape[1]}-d {dtype}, the first {wanted}; "
                    "use features of one model in one precision"
                )
    return [shape[0] for shape, _ in first]


def _info(name: str, revision: str, side: Modality, path: Path, heads: list[Any]) -> EncoderInfo:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)[:1000].astype(np.float64)
    unit = bool(np.all(np.abs(np.linalg.norm(rows, axis=1) - 1) < 1e-2))
    return EncoderInfo(f"precomputed:{name}", revision, side, int(heads[0][0][1]), {}, normalized=unit)


def _digest(folder: Path, paths: Sequence[Path]) -> str:
    """Return a hash of the names, the sizes and the start of each file."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(json.dumps([str(path.relative_to(folder)), path.stat().st_size]).encode())
        with path.open("rb") as file:
            digest.update(file.read(HEAD))
    return digest.hexdigest()


def _parquet_columns(path: Path) -> list[str]:
    try:
        with open_parquet(path) as file:
            return file.names
    except ValueError:
        return []
