"""Dataset readers: images with captions, one reader per module, and `open_dataset`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from csaligner._lazy import lazy_exports
from csaligner.checks import InputError, check_choice, nearest
from csaligner.registry import DATASETS, load
from csaligner.types import Dataset, Item, notes_of
from csaligner.urls import require_local

from .formats import format_of

if TYPE_CHECKING:
    from .check import check_data
    from .clean import clean_items
    from .folder import Folder
    from .huggingface import HuggingFace
    from .images.load import load_image
    from .images.source import Unusable
    from .openmoji import OpenMoji
    from .split import item_split
    from .table import Table
    from .tuxpaint import TuxPaint

__all__ = [
    "Folder",
    "HuggingFace",
    "OpenMoji",
    "Table",
    "TuxPaint",
    "Unusable",
    "check_data",
    "clean_items",
    "item_split",
    "load_image",
    "open_dataset",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "check": "check_data",
        "clean": "clean_items",
        "folder": "Folder",
        "huggingface": "HuggingFace",
        "images.load": "load_image",
        "images.source": "Unusable",
        "openmoji": "OpenMoji",
        "split": "item_split",
        "table": "Table",
        "tuxpaint": "TuxPaint",
    },
)

ALL = ("openmoji", "tuxpaint", "openclipart")  # readers that need no path


class Joined:
    """The concatenation of several datasets."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self._parts = tuple(parts)

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self._parts)

    @property
    def attribution(self) -> str:
        return " ".join(part.attribution for part in self._parts if part.attribution)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for part in self._parts for note in notes_of(part))

    def items(self) -> Sequence[Item]:
        return [item for part in self._parts for item in part.items()]


def open_dataset(spec: str, data_format: str | None = None, **options: Any) -> Dataset:
    """Open a dataset: openmoji, tuxpaint, openclipart, all (these three), or a path; docs/data.md lists the formats.

    data_format: the name of a reader, if the path does not identify it. options: options of the reader, for example
    image_key and caption_key of a table; None means the default.

    Raises InputError for an unknown name, a missing path, and an option that the reader does not have.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if data_format is not None:
        check_choice("data_format", data_format, [name for name in DATASETS if name not in ALL])
    elif spec == "all":
        return Joined([_make(name, (), options) for name in ALL])
    elif spec in ALL:
        return _make(spec, (), options)
    require_local("dataset", spec)
    path = Path(spec)
    pattern = "{" in path.name and path.suffix == ".tar"
    if spec and (path.exists() or pattern):
        name = data_format or ("webdataset" if pattern else format_of(path))
        return _make(name, (path,), options)
    if path.suffix or len(path.parts) > 1:
        raise InputError(f"dataset: no such file or folder: {spec}")
    raise InputError(f"dataset: {spec!r} is neither a path nor a known name; {nearest(spec, [*ALL, 'all'])}")


def _make(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Dataset:
    reader = load("dataset", DATASETS, name)
    known = inspect.signature(reader).parameters
    for option in options:
        if option not in known:
            table = "; data_format table reads delimited text" if name == "texts" else ""
            raise InputError(f"dataset: {name} has no option {option!r}; {nearest(option, known)}{table}")
    return cast(Dataset, reader(*arguments, **options))
