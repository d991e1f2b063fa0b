"""Reading of untrusted Parquet files in batches of limited memory.

Arrow allocates what the headers of pages claim, and expands a dictionary to one value per row. So the headers are read
first (https://parquet.apache.org/docs/file-format/): they limit the memory of a page, the number of values, and the
rows of a batch. The footer is used only to find the pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from .checks import CSAlignerError

SMALL_TABLE = 64 << 20  # unpacked bytes that a file of any size may have
MAX_RATIO = 200  # unpacked bytes per byte of a larger file
MAX_ROWS = (100_000, 8)  # rows: of a file of any size, and per byte of a larger one
MAX_VALUES = (1 << 24, 50)  # values of a column of lists, likewise
BATCH_BYTES = 64 << 20  # of a batch: rows times the longest value that a page could hold
BATCH_ROWS = 1 << 16
HEADER = 1 << 12  # bytes read for the header of a page at first; statistics may make it longer
BUFFER = 1 << 20
DELTA_BYTE_ARRAY = 7  # encoding of a text by the length of the start that it shares with the text before
DICTIONARY_PAGE = 2


class ParquetTable:
    """An open Parquet file; use open_parquet. names: of the columns; schema: of pyarrow; rows: their number;
    groups: rows and bytes of each row group, as the footer claims."""

    def __init__(self, file: Any, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        self.schema = file.schema_arrow
        self.names: list[str] = list(self.schema.names)
        self.rows = int(file.metadata.num_rows)
        _check_rows(file.metadata, self._size)
        groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
        self.groups = [(int(group.num_rows), int(group.total_byte_size)) for group in groups]
        self._pages: dict[tuple[str, ...], _Pages] = {}

    def batches(
        self, columns: Sequence[str], *, most_rows: int = BATCH_ROWS, row_groups: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """Yield record batches of columns. Texts in lists may be of a dictionary type.

        most_rows: of a batch; row_groups: numbers of the groups to read, None: all. Raises ValueError if a page claims
        more than is plausible for the size of the file, or if the batches hold more than that.
        """
        pages = self._pages_of(tuple(columns))
        limit = max(SMALL_TABLE, MAX_RATIO * self._size)
        _limit(pages.unpacked, limit, "uncompressed bytes", self._size)
        _limit(pages.values, max(MAX_VALUES[0], MAX_VALUES[1] * self._size), "values", self._size)
        rows = max(1, min(most_rows, BATCH_ROWS, BATCH_BYTES // max(1, pages.longest)))
        groups = range(len(self.groups)) if row_groups is None else row_groups
        with _opened(self._path, pages.nested) as file:
            held = 0
            # a group at a time: pyarrow cannot put nested values of several groups into one batch
            every = (file.iter_batches(rows, row_groups=[n], columns=list(columns), use_threads=False) for n in groups)
            for batch in chain.from_iterable(every):
                held += _bytes_of(batch)
                _limit(held, limit, "bytes", self._size)
                yield batch

    def read(self, columns: Sequence[str]) -> Any:
        """Return a pyarrow table of columns. Raises ValueError like `batches`."""
        import pyarrow as pa

        found = list(self.batches(columns))
        schema = found[0].schema if found else pa.schema([self.schema.field(name) for name in columns])
        return pa.Table.from_batches(found, schema.with_metadata(self.schema.metadata)).combine_chunks()

    def _pages_of(self, columns: tuple[str, ...]) -> _Pages:
        if columns not in self._pages:
            self._pages[columns] = _pages(self._path, columns)
        return self._pages[columns]


@contextmanager
def open_parquet(path: Path) -> Iterator[ParquetTable]:
    """Open a Parquet file.

    Raises ValueError, one line, for a file that cannot be read, including errors inside the block.
    """
    import pyarrow as pa

    if not path.is_file():
        raise ValueError("no such file")
    try:
        with _opened(path) as file:
            yield ParquetTable(file, path)
    except CSAlignerError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise ValueError(next(iter(str(error).splitlines()), "") or type(error).__name__) from None


def _opened(path: Path, dictionaries: Sequence[str] = ()) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, read_dictionary=list(dictionaries), buffer_size=BUFFER, pre_buffer=False)


def _check_rows(footer: Any, size: int) -> None:
    """Raise ValueError for row counts or sizes in the footer that are implausible for the size of the file."""
    if footer.num_rows > max(MAX_ROWS[0], MAX_ROWS[1] * size):
        raise ValueError(f"the file of {size:,} bytes claims {footer.num_rows:,} rows, too many for its size")
    # row groups only: pyarrow aborts the process for some damaged column chunks
    unpacked = sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    _limit(unpacked, max(SMALL_TABLE, MAX_RATIO * size), "uncompressed bytes", size)


def _limit(value: int, most: int, what: str, size: int) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"the file of {size:,} bytes claims {value:,} {what}, too many for its size")


def _bytes_of(batch: Any) -> int:
    return sum(_bytes_of_array(column) for column in batch.columns)


def _bytes_of_array(array: Any) -> int:
    """Return the bytes of an array with every value in full."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary)
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0) + 4 * len(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _bytes_of_array(array.flatten()) + 4 * len(array)
    if pa.types.is_struct(kind):
        return sum(_bytes_of_array(part) for part in array.flatten())
    return int(array.nbytes)


@dataclass
class _Pages:
    """unpacked: bytes of all pages; values: of the column with most; longest: bytes of the longest value that a row
    could repeat; nested: paths of texts in lists that have a dictionary."""

    unpacked: int
    values: int
    longest: int
    nested: list[str]


def _pages(path: Path, columns: Sequence[str]) -> _Pages:
    """Read the headers of all pages of columns. Raises ValueError if they are damaged."""
    found, nested, values = _Pages(0, 0, 0, []), set[str](), dict[str, int]()
    size, wanted, count = path.stat().st_size, set(columns), 0
    try:
        with path.open("rb") as file:
            for chunk in _chunks(file, size):
                name = chunk[3]
                if name[0].decode("utf-8", "replace") not in wanted:
                    continue
                where = b".".join(name).decode("utf-8", "replace")
                start = min(at for at in (chunk[9], chunk.get(11), size) if at)  # without rows there is no data page
                for kind, header in _headers(file, start, min(size, start + chunk[7])):
                    count += 1
                    _limit(count, size, "pages", size)  # a page named twice, too
                    data = header.get(5) or header.get(8) or {}
                    found.unpacked += header[2]
                    values[where] = values.get(where, 0) + data.get(1, 0)
                    delta = data.get(2 if 5 in header else 4) == DELTA_BYTE_ARRAY
                    if len(name) > 1 and delta:
                        raise ValueError("holds lists of delta-encoded texts; write them with a dictionary")
                    if kind == DICTIONARY_PAGE or delta:
                        found.longest = max(found.longest, header[2])
                        if len(name) > 1 and chunk[1] == 6:  # BYTE_ARRAY
                            nested.add(where)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError):
        raise ValueError("the headers of its pages are damaged") from None
    found.values, found.nested = max(values.values(), default=0), sorted(nested)
    return found


def _chunks(file: BinaryIO, size: int) -> Iterator[dict[int, Any]]:
    """Yield the column chunks of the footer: 1 type, 3 path, 7 compressed bytes, 9 and 11 offsets of pages."""
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > size - 8:
        raise ValueError("the footer is damaged or encrypted")
    file.seek(size - 8 - length)
    footer = _Thrift(file.read(length)).struct()
    for group in footer[4]:
        for column in group[1]:
            yield column[3]


def _headers(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, dict[int, Any]]]:
    """Yield type and header of each page between two offsets: 2 and 3 its bytes, unpacked and packed."""
    while at < end:
        length = HEADER
        while True:
            file.seek(at)
            content = file.read(length)
            reader = _Thrift(content)
            try:
                header = reader.struct()
                break
            except IndexError:
                if len(content) < length:
                    raise
                length *= 8
        if header[2] < 0 or header[3] < 0:
            raise KeyError("negative size")
        yield header[1], header
        at += reader.at + header[3]


class _Thrift:
    """Reader of Thrift's compact protocol: structs as dicts of field numbers. at: number of bytes read.

    Raises IndexError if the content ends before the value, KeyError for an unknown type.
    """

    def __init__(self, content: bytes) -> None:
        self._content, self.at = content, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > 32:
            raise KeyError("nested too deeply")
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            found[number] = self._value(head & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 != 15 else self._varint()
            # an element takes at least a byte: an impossible count ends with the content
            return [self._element(head & 15, depth) for _ in range(count)]
        if kind == 12:
            return self.struct(depth + 1)
        raise KeyError(kind)

    def _element(self, kind: int, depth: int) -> Any:
        return self._byte() == 1 if kind in (1, 2) else self._value(kind, depth)

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _bytes(self, length: int) -> bytes:
        self.at += length
        if self.at > len(self._content):
            raise IndexError(length)
        return self._content[self.at - length : self.at]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise KeyError("a number is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
