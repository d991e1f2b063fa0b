"""Approximate search in memory: an inverted file of 8-bit vectors by faiss, re-scored with the vectors themselves."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.extras import install_command
from csaligner.files import write_folder, write_json
from csaligner.parsing import parse_json

FOLDER, RECORD = "faiss", "faiss.json"
KIND = "faiss"
A_LIST, TRAINED = 64, 64  # rows at least, and rows for the training, of a list


def has_faiss() -> bool:
    """Whether faiss is installed."""
    return find_spec("faiss") is not None


def require_faiss() -> None:
    """Raise InputError if faiss is not installed."""
    if not has_faiss():
        raise InputError(f"approximate: faiss needs faiss-cpu; {install_command('faiss')}")


class MemoryIVF:
    """Lists of rows around about sqrt(N) centres, of which a query reads `nprobes` (Jegou et al., TPAMI 2011)."""

    def __init__(self, lists: Any) -> None:
        """lists: an IVF index of faiss, whose ids are positions."""
        self._lists = lists

    @classmethod
    def build(cls, vectors: Tensor) -> MemoryIVF:
        """Build the lists of unit rows (N, d), N > 0."""
        import faiss

        rows, count = vectors.numpy(), max(1, min(round(math.sqrt(len(vectors))), len(vectors) // A_LIST))
        lists = faiss.index_factory(rows.shape[1], f"IVF{count},SQ8", faiss.METRIC_INNER_PRODUCT)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: count * TRAINED].sort().values
        lists.train(np.ascontiguousarray(rows[order.numpy()]))
        lists.add(np.ascontiguousarray(rows))
        return cls(lists)

    @property
    def partitions(self) -> int:
        return int(self._lists.nlist)

    def candidates(self, queries: Tensor, count: int, nprobes: int) -> list[Tensor]:
        """Return the positions of about `count` near rows of each of Q queries (Q, d), in increasing order."""
        import faiss

        how = faiss.SearchParametersIVF()
        how.nprobe = nprobes
        _, found = self._lists.search(np.ascontiguousarray(queries.numpy()), min(count, self._lists.ntotal), params=how)
        return [torch.from_numpy(np.sort(row[row >= 0])) for row in found]

    def save(self, path: Path) -> None:
        import faiss

        faiss.write_index(self._lists, str(path))


def write_lists(folder: Path, lists: Mapping[str, MemoryIVF], version: list[int]) -> None:
    """Write the lists by kind of item into an index folder, atomically. version: of the tables."""

    def write(out: Path) -> None:
        for kind, one in lists.items():
            one.save(out / f"{kind}.index")
        write_json(out / RECORD, {"version": version, "kinds": sorted(lists)})

    write_folder(folder / FOLDER, write)


def open_lists(folder: Path, version: list[int]) -> dict[str, MemoryIVF] | None:
    """Read the lists of an index folder; None if there are none for this version of the tables, or no faiss."""
    if not has_faiss():
        return None
    import faiss

    try:
        record = parse_json((folder / FOLDER / RECORD).read_text(encoding="utf-8"))
        if record["version"] != version:
            return None
        return {kind: MemoryIVF(faiss.read_index(str(folder / FOLDER / f"{kind}.index"))) for kind in record["kinds"]}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # faiss raises RuntimeError
        return None


def remove_lists(folder: Path) -> None:
    """Remove the lists of an index folder, if there are any."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def files_of_lists(folder: Path) -> list[Path]:
    """Return the files of the lists in an index folder."""
    return sorted(path for path in (folder / FOLDER).glob("*") if path.is_file())
