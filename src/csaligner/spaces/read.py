"""Reading of spaces: feature files, tables with a column of kinds, LanceDB tables, Qdrant points, indexes, stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from csaligner.checks import InputError
from csaligner.datasets.documents import INDEX_FILE
from csaligner.datasets.text_files import TextFiles, split_lines
from csaligner.parquet import open_parquet
from csaligner.parsing import parse_json
from csaligner.remote import local
from csaligner.store.manifest import MANIFEST
from csaligner.store.read_features import READERS, read_array
from csaligner.store.store import Store

from .columns import Columns, Keys, Vectors, as_vectors, named
from .space import Space

MAX_JSON = 2 << 30  # bytes
PICKLED = "meta.json"  # in a folder of Qdrant's local mode


class OneSpaceError(InputError):
    """A source that must hold several spaces holds one."""


def read_spaces(sources: Sequence[str | Path], names: Sequence[str] = (), keys: Keys | None = None) -> list[Space]:
    """Read at least two spaces, from one source that holds all of them or from one source each.

    A source is a feature file (.npy, .npz, .safetensors), a folder of .npy files, which may have the id of each row in
    NAME.txt, a .parquet file, exported points of Qdrant (.json, .jsonl), a folder NAME.lance of a LanceDB database, an
    index or a store of csaligner, or the URL of one of these. names: of the spaces, in order; names that the source
    uses itself select its spaces. Default: the source's names, or those of the files. Nothing is unpickled.
    Raises InputError for a source that is missing, unreadable, or holds fewer than two spaces.
    """
    keys = keys or Keys()
    if not sources:
        raise InputError("sources: got none, wanted one that holds all spaces or one for each")
    if len(sources) == 1:
        found = _spaces(local(sources[0]), keys)
        if len(found) < 2:
            raise OneSpaceError(
                f"{sources[0]}: holds one space, {found[0].name}; give a second source, or --kind-key, the column that "
                "names the space of each row"
            )
        if len(names) == 1:
            raise InputError(f"names: got {names[0]}; give at least two of {', '.join(space.name for space in found)}")
        return named(found, names, str(sources[0]))
    found = []
    for source in sources:
        parts = _spaces(local(source), keys)
        if len(parts) > 1:
            raise InputError(f"{source}: holds {', '.join(s.name for s in parts)}; choose one with --vector-key")
        found.append(parts[0])
    default = _file_names(sources)
    if names and len(names) != len(sources):
        raise InputError(f"names: got {', '.join(names)} for {', '.join(default)}; give one name per source")
    if len(set(names)) < len(names):
        raise InputError(f"names: {', '.join(names)} has one name twice; give different names")
    return [replace(space, name=name) for space, name in zip(found, names or default, strict=True)]


def read_space(source: str | Path, name: str, key: str | None = None) -> Space:
    """Read one space from a source that holds one, or the vectors `key` of one that holds more. Raises InputError."""
    found = _spaces(local(source), Keys(vectors=(key,) if key else ()))
    if len(found) > 1:
        raise InputError(f"{source}: holds {', '.join(s.name for s in found)}; choose one with --{name}-key")
    return replace(found[0], name=name)


def _file_names(sources: Sequence[str | Path]) -> list[str]:
    """Return the names of the files without suffix; first, second ... if two are equal."""
    stems = [Path(source).stem for source in sources]
    ordinals = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
    return stems if len(set(stems)) == len(stems) else (ordinals + stems[len(ordinals) :])[: len(stems)]


def _spaces(path: Path, keys: Keys) -> list[Space]:
    if path.is_dir():
        return _of_folder(path, keys)
    if not path.is_file():
        raise InputError(f"sources: no such file or folder: {path}")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _of_parquet(path).spaces(keys)
    if suffix in {".json", ".jsonl"} and (points := _points(path)) is not None:
        return _of_points(points, path).spaces(keys)
    if suffix == ".npz":
        return _of_npz(path).spaces(keys)
    if suffix not in READERS:
        wanted = ", ".join(READERS)
        raise InputError(f"sources: {path}: {suffix or 'no suffix'} is not known; wanted {wanted} or a folder")
    key = keys.vectors[0] if keys.vectors else None
    return [Space.of(path.stem, read_array(path, key, "vector_key"), source=str(path))]


def _of_folder(path: Path, keys: Keys) -> list[Space]:
    if path.suffix == ".lance":
        from csaligner.search.lance_table import read_table

        return _of_arrow(read_table(path.parent, path.stem), str(path)).spaces(keys)
    if (path / INDEX_FILE).is_file():
        return _of_index(path)
    if (path / MANIFEST).is_file():
        return _of_store(path)
    if (path / PICKLED).is_file() and (path / "collection").is_dir():
        raise InputError(
            f"sources: {path} is a folder of Qdrant's local mode, which holds pickled points and is not read; export "
            "the points as JSON: client.scroll(NAME, with_vectors=True)"
        )
    arrays = sorted(path.glob("*.npy"))
    if arrays:
        return [Space.of(each.stem, read_array(each), _ids_of(each), str(each)) for each in arrays]
    tables = sorted(path.glob("*.lance"))
    if len(tables) == 1:
        return _of_folder(tables[0], keys)
    names = f"; choose one of {', '.join(t.name for t in tables)}" if tables else ""
    raise InputError(f"sources: {path} holds no .npy file, and is no LanceDB table, no index and no store{names}")


def _ids_of(array: Path) -> list[str] | None:
    """Return the lines of NAME.txt beside NAME.npy, the id of each row; None if there is no such file."""
    path = array.with_suffix(".txt")
    return split_lines(TextFiles("utf-8-sig").read_all(path)) if path.is_file() else None


def _of_index(path: Path) -> list[Space]:
    """Return the aligned vectors of images and texts, the parts of fused items among them."""
    from csaligner.search.lance_table import ALIGNED, FUSED, PARTS, TABLES, read_table

    found = []
    fused = (path / f"{FUSED}.lance").is_dir()
    for modality, name in TABLES.items():
        rows, ids = [], list[str]()
        for table_name, column in [(name, ALIGNED), *([(FUSED, PARTS[modality])] if fused else [])]:
            table = read_table(path, table_name, ["id", "owner", column])
            vectors = _list_column(table, column, str(path))
            if vectors is not None:
                rows.append(vectors.rows)
                ids += [row["owner"] or row["id"] for row in table.select(["id", "owner"]).to_pylist()]
        if not rows:
            raise InputError(f"sources: {path} holds no {modality}; index some first")
        found.append(Space.of(modality, np.concatenate(rows), ids, str(path)))
    return found


def _of_store(path: Path) -> list[Space]:
    """Return the images and the captions of a store, which pair by image id."""
    store = Store.open(path)
    ids, found = store.column("image_id"), []
    for side in store.sides:
        at = store.rows_of(side)
        found.append(Space.of(side, store.rows(side, at), [ids[row] for row in at.tolist()], str(path)))
    return found


def _of_parquet(path: Path) -> Columns:
    try:
        with open_parquet(path) as file:
            return _of_arrow(file.read(file.names), str(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"sources: {path} cannot be read as Parquet ({error})") from None


def _of_arrow(table: Any, source: str) -> Columns:
    import pyarrow as pa

    vectors, labels = {}, {}
    for field in table.schema:
        if "list" in str(field.type):
            found = _list_column(table, field.name, source)
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type) or pa.types.is_integer(field.type):
            values = table.column(field.name).to_pylist()
            found = as_vectors(values, field.name, source) if pa.types.is_string(field.type) else None
            if found is None:
                labels[field.name] = ["" if value is None else str(value) for value in values]
        else:
            continue
        if found is not None:
            vectors[field.name] = found
    return Columns(source, table.num_rows, vectors, labels)


def _list_column(table: Any, name: str, source: str) -> Vectors | None:
    """Return a column of lists of numbers as an array; None for lists of other values and for a column of nulls."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(name).combine_chunks()
    kind = column.type.value_type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return None
    at = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    column = column.drop_null()
    widths = sorted(pc.unique(pc.list_value_length(column)).to_pylist())
    if not widths:
        return None
    if len(widths) > 1:
        raise InputError(f"{source}: column {name!r} has vectors of {widths[0]} and {widths[-1]} dimensions")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return Vectors(flat.reshape(len(column), -1), at)


def _of_npz(path: Path) -> Columns:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files)
    except Exception as error:
        raise InputError(f"sources: {path} cannot be read as .npz ({' '.join(str(error).split())})") from None
    arrays = {name: read_array(path, name, "vector_key") for name in names}
    vectors = {name: Vectors(a, np.arange(len(a))) for name, a in arrays.items() if a.ndim == 2}
    labels = {name: list(map(str, a.tolist())) for name, a in arrays.items() if a.ndim == 1 and a.dtype.kind in "iuU"}
    rows = max((len(v.rows) for v in vectors.values()), default=0)
    return Columns(str(path), rows, vectors, {name: v for name, v in labels.items() if len(v) == rows})


def _of_points(points: list[dict[str, Any]], path: Path) -> Columns:
    dicts = [p.get("vector") for p in points]
    multiple = any(isinstance(v, dict) for v in dicts)
    named_vectors: dict[str, list[Any]] = {}
    for row, vector in enumerate(dicts):
        for name, value in vector.items() if isinstance(vector, dict) else [("vector", vector)]:
            named_vectors.setdefault(str(name), [None] * len(points))[row] = value
    payloads = [p.get("payload") or {} for p in points]
    keys = {k for p in payloads for k, v in p.items() if isinstance(v, (str, int)) and not isinstance(v, bool)}
    labels = {k: [str(p.get(k, "")) for p in payloads] for k in sorted(keys)}
    if multiple:
        labels["id"] = [str(p.get("id", row)) for row, p in enumerate(points)]
    found = {name: as_vectors(values, name, str(path)) for name, values in named_vectors.items()}
    return Columns(str(path), len(points), {n: v for n, v in found.items() if v is not None}, labels)


def _points(path: Path) -> list[dict[str, Any]] | None:
    """Read points of Qdrant, {"id", "vector", "payload"}: a list, the answer of a scroll, or one point per line.

    Returns None for other JSON."""
    if path.stat().st_size > MAX_JSON:
        raise InputError(f"sources: {path} has more than 2 GiB; export a part of the points, or .parquet")
    try:
        if path.suffix.lower() == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                found = [parse_json(line) for line in lines if line.strip()]
        else:
            found = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"sources: {path} is not JSON ({error})") from None
    for key in ("result", "points"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    points = isinstance(found, list) and found and all(isinstance(p, dict) and "vector" in p for p in found)
    return found if points else None
