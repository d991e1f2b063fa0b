"""WebDataset shards: tars whose members of one stem are one sample. Read where they lie, never unpacked."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from csaligner.checks import InputError
from csaligner.datasets.images.load import SUFFIXES
from csaligner.datasets.images.source import FilePart
from csaligner.parsing import parse_json
from csaligner.types import Item

from .records import BadRecord, captions, items_of

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
TEXTS = (".txt", ".caption")
CAPTION_KEYS = ("caption", "captions", "text")
BLOCK = tarfile.BLOCKSIZE
MAX_TEXT = 10_000_000  # bytes of a .txt or .json member that are read


@dataclass
class Sample:
    """The members of one stem. broken: why it cannot be used."""

    image: FilePart | Path | None = None
    text: str | None = None
    record: Mapping[str, object] = field(default_factory=dict)
    broken: str = ""


class WebDataset:
    """key.jpg (or another kind of picture), key.txt with one caption, key.json with `caption`, a text or a list,
    which counts where there is no .txt.

    path: a tar, a folder of tars, or a pattern as shards/{00000..00010}.tar. The image id is the tar's name and the
    key. Members are only listed here: workers read pictures from the tar by their place in it, and nothing is ever
    written, so a name with .. in it can lead nowhere; such names, and links, are unusable all the same. A broken
    member costs itself: one unusable item, and the rest goes on.
    """

    attribution = ""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._tars = tars_of(self._path)

    @property
    def name(self) -> str:
        return self._path.resolve().name

    def items(self) -> Sequence[Item]:
        return [item for tar in self._tars for item in self._of(tar)]

    def _of(self, tar: Path) -> list[Item]:
        def make(pair: tuple[str, Sample]) -> Item:
            key, sample = pair
            if sample.broken or sample.image is None:
                raise BadRecord(sample.broken or "has no picture")
            image_id = f"{tar.stem}/{key}"
            return Item(image_id, sample.image, captions_of(sample), group=image_id)

        return items_of(tar, ((key, (key, sample)) for key, sample in samples_of(tar).items()), make)


def tars_of(path: Path) -> list[Path]:
    """The shards that a tar, a folder or a {first..last} pattern stands for; InputError where there are none."""
    found = sorted(path.glob("*.tar")) if path.is_dir() else [Path(name) for name in _expanded(str(path))]
    missing = [tar for tar in found if not tar.is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such file")
    if not found:
        raise InputError(f"{path}: holds no .tar")
    return found


def samples_of(tar: Path) -> dict[str, Sample]:
    """Key -> sample, in the order of the tar. A stretch that is no member is a sample of its own, with the reason;
    reading goes on after it."""
    samples: dict[str, Sample] = {}
    end = 0
    try:
        with tarfile.open(tar, "r:", ignore_zeros=True) as file, tar.open("rb") as content:
            for member in file:
                _check_gap(content, end, member.offset, samples)
                _take(tar, file, member, samples)
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK if member.isreg() else member.offset_data
            _check_gap(content, end, tar.stat().st_size, samples)
    except (tarfile.TarError, OSError, EOFError) as error:
        _broken(samples, " ".join(str(error).split()) or type(error).__name__)
    return samples


def captions_of(sample: Sample) -> tuple[str, ...]:
    if sample.text is not None:
        return (sample.text,)
    key = next((key for key in CAPTION_KEYS if key in sample.record), None)
    return captions(sample.record[key]) if key else ()


def _take(tar: Path, file: tarfile.TarFile, member: tarfile.TarInfo, samples: dict[str, Sample]) -> None:
    name = PurePosixPath(member.name)
    if member.isdir() or name.name.startswith("."):
        return
    stem, dot, suffix = name.name.partition(".")
    key, suffix = (name.parent / stem).as_posix(), (dot + suffix).lower()
    sample = samples.setdefault(key, Sample())
    if not member.isfile():
        sample.broken = f"{member.name} is a link, wanted a file"
    elif name.is_absolute() or ".." in name.parts:
        sample.broken = f"the name {member.name!r} leads out of the tar"
    elif suffix in SUFFIXES:
        sample.image = FilePart(tar.absolute(), member.offset_data, member.size, name.name)
        sample.broken = sample.broken or ("" if member.size else f"{member.name} is empty")
    elif suffix in (*TEXTS, ".json"):
        _read(file, member, suffix, sample)


def _read(file: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, sample: Sample) -> None:
    if member.size > MAX_TEXT:
        sample.broken = f"{member.name} has {member.size:,} bytes, wanted at most {MAX_TEXT:,}"
        return
    stream = file.extractfile(member)
    content = stream.read() if stream else b""
    try:
        text = content.decode("utf-8-sig")
        if suffix != ".json":
            sample.text = text
            return
        record = parse_json(text)
    except ValueError as error:  # of the encoding or of JSON
        sample.broken = f"{member.name} cannot be read ({error})"
        return
    if isinstance(record, dict):
        sample.record = record
    else:
        sample.broken = f"{member.name} is no JSON object"


def _expanded(pattern: str) -> list[str]:
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for number in numbers for name in _expanded(before + number + after)]


def _check_gap(content: BinaryIO, start: int, end: int, samples: dict[str, Sample]) -> None:
    """Between members there are zeros only; anything else is a member that cannot be read."""
    if start < end:
        content.seek(start)
        if any(content.read(BLOCK)):
            _broken(samples, f"no member can be read at byte {start}")


def _broken(samples: dict[str, Sample], reason: str) -> None:
    where = f"after {last}" if (last := next(reversed(samples), None)) else "at its start"
    samples[f"({where})"] = Sample(broken=f"is broken: {reason}; copy the tar again")
