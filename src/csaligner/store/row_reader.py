"""Random access to the rows of a store, which reads only the requested rows.

The files are memory-mapped only to check their shapes. Rows read through a map would count as memory of the process,
and Linux maps up to 2 MB around each row, so a batch of scattered rows would map the whole store.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.types import Modality

from .manifest import Manifest
from .shard_files import FOLDERS, Array, check_file, map_array


class RowReader:
    """Reader of one modality of a store.

    verify: compare a file's SHA-256 with the manifest's on first use.
    """

    def __init__(self, folder: Path, manifest: Manifest, side: Modality, verify: bool) -> None:
        self._folder, self._side, self._dtype = folder, side, manifest.dtype
        self.dim = manifest.encoders[side].dim
        self._shards = manifest.shards
        self._ends = np.cumsum([shard.rows for shard in manifest.shards])
        self._begins: dict[int, int | None] = {}
        self._unverified = set(range(len(self._shards))) if verify else set()

    def check_shapes(self) -> None:
        """Raise InputError unless every file exists with the shape and dtype of the manifest."""
        for number in range(len(self._shards)):
            self._begins[number] = _begin(self._map(number))

    def __call__(self, rows: npt.ArrayLike | Tensor) -> Tensor:
        """Return (len(rows), dim) float32, in the order of `rows`, row numbers over all shards."""
        wanted = np.asarray(rows, dtype=np.int64)
        found = np.empty((len(wanted), self.dim), dtype=np.float32)
        shard_of = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == number)
            start = int(self._ends[number]) - self._shards[number].rows
            found[here] = self._rows(number, wanted[here] - start)
        return torch.from_numpy(found)

    def _rows(self, number: int, rows: npt.NDArray[np.int64]) -> Array:
        """Return rows of one shard."""
        name = self._name(number)
        if number in self._unverified:
            check_file(self._folder, name, self._shards[number].files[name])
            self._unverified.discard(number)
        if number not in self._begins:
            self._begins[number] = _begin(self._map(number))
        begin = self._begins[number]
        if begin is None:
            return self._map(number)[rows]
        order = np.argsort(rows, kind="stable")
        found = np.empty((len(rows), self.dim), dtype=self._dtype)
        try:
            found[order] = self._read(self._folder / name, begin, rows[order])
        except FileNotFoundError:
            raise InputError(
                f"store: {self._folder / name} was removed after the store was opened; restore it"
            ) from None
        return found

    def _read(self, path: Path, begin: int, rows: npt.NDArray[np.int64]) -> Array:
        """Read rows in ascending order; adjacent rows are read at once."""
        found: Array = np.empty((len(rows), self.dim), dtype=self._dtype)
        content, width = found.data.cast("B"), found.strides[0]
        starts = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1).tolist()
        with path.open("rb", buffering=0) as file:
            for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
                part, position = content[start * width : end * width], begin + int(rows[start]) * width
                while part:  # a read may return fewer bytes
                    count = os.preadv(file.fileno(), [part], position)
                    if count == 0:
                        raise InputError(
                            f"store: {path} was truncated after the store was opened; delete it and embed again"
                        )
                    part, position = part[count:], position + count
        return found

    def _map(self, number: int) -> Array:
        return map_array(self._folder / self._name(number), (self._shards[number].rows, self.dim), self._dtype)

    def _name(self, number: int) -> str:
        folder = FOLDERS[self._side]
        return self._shards[number].file(folder) or f"{folder}/{folder}_{number}.npy"


def _begin(array: Array) -> int | None:
    """Return the file offset of the first row; None if rows cannot be read one by one (Windows, Fortran order)."""
    return getattr(array, "offset", None) if array.flags.c_contiguous and hasattr(os, "preadv") else None
