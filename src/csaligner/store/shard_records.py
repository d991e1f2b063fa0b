"""Records of the finished shards of an unfinished store, one file per shard, so that processes write independently."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from csaligner.checks import InputError
from csaligner.integrity import ErrorContext, read_sealed, write_sealed
from csaligner.parsing import checked

from .manifest import Manifest, Shard, Skipped
from .shard_files import damaged_files

PARTS = "unfinished"


@dataclass(frozen=True)
class Part:
    """A written shard, and the images skipped in it."""

    shard: Shard
    skipped: tuple[Skipped, ...]


def write_part(folder: Path, number: int, part: Part) -> None:
    (folder / PARTS).mkdir(exist_ok=True)
    write_sealed(folder / PARTS / f"{number}.json", asdict(part))


def read_parts(folder: Path) -> dict[int, Part]:
    """Return shard number -> record. Unreadable records are ignored: their shards are made again."""
    files = (path for path in (folder / PARTS).glob("*.json") if path.stem.isdecimal())
    found = {int(path.stem): _read(path) for path in files}
    return {number: part for number, part in sorted(found.items()) if part is not None}


def _read(path: Path) -> Part | None:
    try:
        return read_sealed(path, ErrorContext("part", "made again"), partial(checked, Part))
    except InputError:
        return None


def check_parts(folder: Path, parts: Mapping[int, Part]) -> None:
    """Raise InputError if a file of a finished shard is damaged."""
    damaged = damaged_files(folder, [part.shard for part in parts.values()])
    if damaged:
        raise InputError(f"out: {folder}: damaged or missing files: {', '.join(damaged)}; delete them and embed again")


def join_parts(manifest: Manifest, parts: Mapping[int, Part]) -> Manifest:
    """Return the manifest with all shards in order."""
    ordered = [parts[number] for number in sorted(parts)]
    skipped = tuple(entry for part in ordered for entry in part.skipped)
    return replace(manifest, shards=tuple(part.shard for part in ordered), skipped=skipped)


def remove_parts(folder: Path) -> None:
    shutil.rmtree(folder / PARTS, ignore_errors=True)
