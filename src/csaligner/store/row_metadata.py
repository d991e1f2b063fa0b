"""Row metadata of a store: ids, captions, paths and splits, as one table in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from csaligner.checks import InputError
from csaligner.types import Split

from .manifest import Manifest
from .shard_files import COLUMNS, check_file, metadata_columns, metadata_file, read_metadata

Index = npt.NDArray[np.int64]
Read = Callable[[int], Any]  # shard number -> pyarrow table with COLUMNS


class Metadata:
    """read: returns the table of a shard whose file is missing or has other columns than COLUMNS."""

    def __init__(self, folder: Path, manifest: Manifest, verify: bool, read: Read | None = None) -> None:
        self._folder, self._manifest, self._verify = folder, manifest, verify
        self._foreign = read

    def check(self) -> None:
        """Raise InputError unless every file has all columns and the number of rows of the manifest.

        The SHA-256 is checked first, so that a damaged file is never parsed.
        """
        if self._foreign is not None:
            return
        for number, shard in enumerate(self._manifest.shards):
            name = metadata_file(number)
            try:
                if self._verify and (self._folder / name).is_file():  # reading a pipe could block
                    check_file(self._folder, name, shard.files.get(name, ""))
                columns, rows = metadata_columns(self._folder / name)
            except InputError:
                raise
            except (OSError, ValueError) as error:  # the base classes of pyarrow's errors
                raise self._unreadable(error) from None
            missing = [name for name in COLUMNS if name not in columns]
            if missing:
                raise self._unreadable(KeyError(f"shard {number} has no column {missing[0]}"))
            if rows != shard.rows:
                raise InputError(
                    f"store: {self._folder}: shard {number} has {rows} rows of metadata, wanted {shard.rows}; "
                    "delete that file and embed again"
                )

    def column(self, name: str) -> list[str]:
        return self._table.column(name).to_pylist()  # type: ignore[no-any-return]

    def coded_rows(self, split: Split | None) -> tuple[Index, Index]:
        """Return the rows of a split (None: all), and the number of each row's image in order of first appearance."""
        import pyarrow.compute as pc

        ids = self._table.column("image_id")
        if split is None:
            rows = np.arange(len(ids), dtype=np.int64)
        else:
            rows = np.flatnonzero(pc.equal(self._table.column("split"), split).to_numpy())
            ids = ids.take(rows)
        codes = ids.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        return rows, codes.astype(np.int64)

    @cached_property
    def _table(self) -> Any:
        """COLUMNS of all shards as a pyarrow table, which takes a fraction of the memory of lists."""
        import pyarrow as pa

        large = pa.schema([(name, pa.large_string()) for name in COLUMNS])
        try:
            tables = [(self._foreign or self._own)(number) for number in range(len(self._manifest.shards))]
            return pa.concat_tables([table.cast(large) for table in tables]).combine_chunks()
        except InputError:
            raise
        except (OSError, ValueError, KeyError) as error:  # the base classes of pyarrow's errors
            raise self._unreadable(error) from None

    def _own(self, number: int) -> Any:
        return read_metadata(self._folder / metadata_file(number))

    def _unreadable(self, error: Exception) -> InputError:
        reason = str(error).splitlines()[0]
        return InputError(f"store: metadata of {self._folder} cannot be read ({reason}); embed again")
