"""Named columns of vectors and labels, from tables, archives and exported points, and the spaces they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csaligner.checks import InputError, nearest
from csaligner.store.number_formats import decoded

from .space import Space

KIND_KEYS = ("kind", "modality", "space", "type")
MAX_KINDS = 8
Array = NDArray[Any]


@dataclass(frozen=True)
class Keys:
    """Names of columns. kind: the space of each row; default: kind, modality, space or type, if there is one. vectors:
    the columns of vectors; default: all. ids: rows of one item have equal ids."""

    kind: str | None = None
    vectors: tuple[str, ...] = ()
    ids: str | None = None


@dataclass(frozen=True)
class Vectors:
    """rows: (n, d); at: (n,) row numbers in the table, since rows without a vector are skipped."""

    rows: Array
    at: Array


@dataclass(frozen=True)
class Columns:
    """vectors, labels: columns by name; a column of labels has one string per row of the table; rows: of the table."""

    source: str
    rows: int
    vectors: Mapping[str, Vectors]
    labels: Mapping[str, Sequence[str]]

    def spaces(self, keys: Keys) -> list[Space]:
        """Return one space per kind of row, or one per column of vectors. Raises InputError."""
        for name in keys.vectors:
            self._check(name, self.vectors, "vector_key")
        vectors = {name: self.vectors[name] for name in (keys.vectors or self.vectors)}
        if not vectors:
            raise InputError(f"{self.source}: holds no column of vectors; write each row's vector as one list")
        ids = None if keys.ids is None else self._check(keys.ids, self.labels, "id_key")
        kind = keys.kind or (next((k for k in KIND_KEYS if k in self.labels), None) if len(vectors) == 1 else None)
        if kind is not None:
            if len(vectors) > 1:
                raise InputError(f"vector_key: {self.source} holds {', '.join(vectors)}; choose one")
            return self._by_kind(self._check(kind, self.labels, "kind_key"), next(iter(vectors.values())), ids)
        names = ids if ids is not None else list(map(str, range(self.rows)))
        return [
            Space.of(
                name, found.rows, None if len(vectors) == 1 and ids is None else _take(names, found.at), self.source
            )
            for name, found in vectors.items()
        ]

    def _by_kind(self, kinds: Sequence[str], found: Vectors, ids: Sequence[str] | None) -> list[Space]:
        of_row = np.array([kinds[row] for row in found.at])
        names = list(dict.fromkeys(of_row.tolist()))
        if len(names) > MAX_KINDS:
            raise InputError(f"kind_key: {self.source} holds {len(names)} kinds, wanted at most {MAX_KINDS}")
        return [
            Space.of(
                name,
                found.rows[of_row == name],
                None if ids is None else _take(ids, found.at[of_row == name]),
                self.source,
            )
            for name in names
        ]

    def _check(self, name: str, known: Mapping[str, Any], option: str) -> Any:
        if name not in known:
            raise InputError(f"{option}: {self.source} holds no such column {name!r}; {nearest(name, known)}")
        return known[name]


def named(spaces: Sequence[Space], names: Sequence[str], source: str) -> list[Space]:
    """Select or rename spaces: names of spaces found select them, other names rename all in order.

    Raises InputError."""
    if not names:
        return list(spaces)
    if len(set(names)) < len(names):
        raise InputError(f"names: {', '.join(names)} has one name twice; give different names")
    by_name = {space.name: space for space in spaces}
    if all(name in by_name for name in names):
        return [by_name[name] for name in names]
    known = {name.casefold() for name in by_name}
    if other := [name for name in names if name not in by_name] if known & {n.casefold() for n in names} else []:
        raise InputError(
            f"names: {source} holds {', '.join(by_name)}, but not {', '.join(other)}; give names that it holds, or "
            "other names for all"
        )
    if len(names) != len(spaces):
        raise InputError(f"names: got {', '.join(names)} for {', '.join(by_name)} of {source}; give one name per space")
    return [Space(name, s.rows, s.ids, s.source, s.dtype) for name, s in zip(names, spaces, strict=True)]


def as_vectors(values: Sequence[Any], name: str, source: str) -> Vectors | None:
    """Stack rows of numbers or base64 text; None is a missing row. Returns None if the values are no vectors."""
    at = np.array([row for row, value in enumerate(values) if value is not None], dtype=np.int64)
    if not len(at):
        return None
    first = values[at[0]]
    if isinstance(first, str):
        rows = [decoded(values[row]) for row in at]
        if any(row is None for row in rows):
            return None
    elif isinstance(first, (list, tuple, np.ndarray)):
        rows = [values[row] for row in at]
    else:
        return None
    widths = sorted({len(row) for row in rows if row is not None})
    if len(widths) != 1:
        raise InputError(f"{source}: column {name!r} has vectors of {widths[0]} and {widths[-1]} dimensions")
    array = np.array(rows)
    return Vectors(array, at) if array.dtype.kind in "biuf" and array.ndim == 2 else None


def _take(values: Sequence[str], rows: Array) -> list[str]:
    return [values[row] for row in rows]
