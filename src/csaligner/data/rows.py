"""Rows of a store by number, straight from the mapped files: what is not asked for stays on the disk."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csaligner.types import Modality

from .manifest import Manifest
from .shards import FOLDERS, Array, check_file, map_array

OPEN_FILES = 256  # per side: each mapped file holds a file descriptor
RELEASE_EVERY = 1 << 28  # bytes of mapped pages after which they are handed back
PAGES = 1 << 16  # bytes that the system maps around a row that is touched


class RowReader:
    """One side of a store.

    verify: compare a file's SHA-256 with the manifest's when it is first used.
    """

    def __init__(self, folder: Path, manifest: Manifest, side: Modality, verify: bool) -> None:
        self._folder, self._side, self._dtype = folder, side, manifest.dtype
        self.dim = manifest.encoders[side].dim
        self._shards = manifest.shards
        self._ends = np.cumsum([shard.rows for shard in manifest.shards])
        self._maps: OrderedDict[int, Array] = OrderedDict()
        self._unverified = set(range(len(self._shards))) if verify else set()
        self._touched = 0

    def check_shapes(self) -> None:
        """InputError unless every file is there and has the shape and precision of the manifest."""
        for number in range(len(self._shards)):
            self._open(number)

    def __call__(self, rows: npt.ArrayLike | Tensor) -> Tensor:
        """(len(rows), dim) float32, in the order of `rows`, which count through all shards."""
        wanted = np.asarray(rows, dtype=np.int64)
        found = np.empty((len(wanted), self.dim), dtype=np.float32)
        shard_of = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(shard_of).tolist():
            here = np.flatnonzero(shard_of == number)
            start = int(self._ends[number]) - self._shards[number].rows
            found[here] = self._map(number)[wanted[here] - start]
        self._release(len(wanted))
        return torch.from_numpy(found)

    def _map(self, number: int) -> Array:
        if number in self._maps:
            self._maps.move_to_end(number)
            return self._maps[number]
        if number in self._unverified:
            name = self._name(number)
            check_file(self._folder, name, self._shards[number].files[name])
            self._unverified.discard(number)
        self._maps[number] = self._open(number)
        if len(self._maps) > OPEN_FILES:
            self._maps.popitem(last=False)
        return self._maps[number]

    def _open(self, number: int) -> Array:
        return map_array(self._folder / self._name(number), (self._shards[number].rows, self.dim), self._dtype)

    def _name(self, number: int) -> str:
        folder = FOLDERS[self._side]
        return self._shards[number].file(folder) or f"{folder}/{folder}_{number}.npy"

    def _release(self, rows: int) -> None:
        """Mapped pages count as this process's memory until they are handed back; the system keeps them cached."""
        self._touched += rows * max(PAGES, self.dim * 4)
        if self._touched < RELEASE_EVERY:
            return
        self._touched = 0
        for array in self._maps.values():
            mapped = getattr(array, "_mmap", None)
            if mapped is not None and hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)
