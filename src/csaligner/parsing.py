"""JSON, YAML and parquet from strangers: whatever is wrong, one kind of error comes of it, and it comes soon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from .checks import CSAlignerError

T = TypeVar("T")
MAX_YAML = 200_000  # characters: PyYAML reads about as many in a second

SMALL_TABLE = 64 << 20  # bytes when unpacked, that any table may have
MAX_RATIO = 200  # of unpacked to packed bytes of a larger one
MAX_ROWS = (100_000, 8)  # that any table may have, and for each of its bytes


class _Loader(yaml.SafeLoader):
    """Plain values only, and every one written out: lists of aliases of lists of aliases grow without end."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            if not isinstance(self.anchors.get(event.anchor), yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, f"*{event.anchor}: write the values out", None)
        return super().compose_node(parent, index)


def parse_json(text: str | bytes) -> Any:
    """json.loads; every error, too deep nesting and too long numbers included, is a JSONDecodeError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
    except UnicodeDecodeError:
        raise json.JSONDecodeError("not UTF-8", "", 0) from None
    except ValueError as error:  # a number of thousands of digits
        raise json.JSONDecodeError(str(error).partition(";")[0], "", 0) from None


def parse_yaml(text: str) -> Any:
    """yaml.safe_load of at most MAX_YAML characters without aliases of lists and mappings.

    Raises yaml.YAMLError, of one line or several, for everything that is wrong.
    """
    if len(text) > MAX_YAML:
        raise yaml.YAMLError(f"{len(text):,} characters, wanted at most {MAX_YAML:,}")
    try:
        return yaml.load(text, Loader=_Loader)  # nosec B506
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except Exception as error:  # PyYAML's constructors let Python's own errors through: an impossible date, say
        raise yaml.YAMLError(str(error).partition(";")[0]) from None


def checked(kind: type[T], value: Any) -> T:
    """A value of JSON as the dataclass `kind`, every field of the type that it says. Raises ValueError, one line."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{where}: {first['msg'].partition(chr(10))[0]}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


@contextmanager
def open_parquet(path: Path, **options: Any) -> Iterator[Any]:
    """A pyarrow ParquetFile, once what its footer says of its size fits the file.

    Raises ValueError, one line, for a file that cannot be read and for whatever goes wrong with it inside the block.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ValueError("no such file")
    try:
        with pq.ParquetFile(path, **options) as file:
            _check_size(file.metadata, path.stat().st_size)
            yield file
    except CSAlignerError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        raise ValueError(next(iter(str(error).splitlines()), "") or type(error).__name__) from None


def _check_size(footer: Any, size: int) -> None:
    """A few bytes can stand for many rows, or for one long text over and over."""
    if footer.num_rows > max(MAX_ROWS[0], MAX_ROWS[1] * size):
        raise ValueError(f"{size:,} bytes claim to hold {footer.num_rows:,} rows")
    # of row groups and not of their columns: pyarrow aborts the process at some that are damaged
    unpacked = sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    if unpacked > max(SMALL_TABLE, MAX_RATIO * size) or unpacked < 0:
        raise ValueError(f"{size:,} bytes claim to hold {unpacked:,}")
