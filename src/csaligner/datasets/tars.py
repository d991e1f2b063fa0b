"""Reader of WebDataset shards: tars whose members of one key form a sample, read in place without unpacking."""

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
from .text_files import decoded

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
TEXTS = (".txt", ".caption")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
KNOWN = SUFFIXES | {*TEXTS, ".json"}
CAPTION_KEYS = ("caption", "captions", "text")
BLOCK = tarfile.BLOCKSIZE
MAX_TEXT = 10_000_000  # bytes of a .txt or .json member that are read


@dataclass(frozen=True)
class _Member:
    """name: path in the tar; suffix: the part from the first dot on, in lower case; content: bytes of a text member."""

    name: PurePosixPath
    suffix: str
    part: FilePart
    content: bytes | None = None
    broken: str = ""


@dataclass
class Sample:
    """The members of one key. broken: why it cannot be used; others: suffixes of members that are not read."""

    image: FilePart | Path | None = None
    text: str | None = None
    record: Mapping[str, object] = field(default_factory=dict)
    broken: str = ""
    others: list[str] = field(default_factory=list)


class WebDataset:
    """Samples of key.jpg (or another image format), key.txt with one caption, and key.json, whose `caption` (a text or
    a list) is used if there is no .txt. The key ends at the first dot, or at the last one if no member would have
    one of these suffixes. A second image or text of a key is an unusable item; of two images in different formats the
    first is used.

    path: a tar, a folder of tars, or a pattern such as shards/{00000..00010}.tar. The image id is the tar's name and
    the key. Members are only listed here; workers read images from the tar by offset, and nothing is written. Names
    that contain .. and links are unusable items. A damaged member is one unusable item; the others are read.
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
                raise BadRecord(sample.broken or no_image(sample))
            image_id = f"{tar.stem}/{key}"
            return Item(image_id, sample.image, captions_of(sample), group=image_id)

        return items_of(tar, ((key, (key, sample)) for key, sample in samples_of(tar).items()), make)


def tars_of(path: Path) -> list[Path]:
    """Return the shards of a tar, a folder or a {first..last} pattern. Raises InputError if there are none."""
    found = sorted(path.glob("*.tar")) if path.is_dir() else [Path(name) for name in _expanded(str(path))]
    packed = [tar for tar in found if tar.name.lower().endswith(COMPRESSED)]
    if packed:
        raise InputError(f"{packed[0]}: is compressed, wanted an uncompressed .tar; decompress it first (gunzip)")
    missing = [tar for tar in found if not tar.is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no such file")
    if not found:
        raise InputError(f"{path}: holds no .tar")
    return found


def samples_of(tar: Path) -> dict[str, Sample]:
    """Return key -> sample, in the order of the tar. A damaged region becomes a broken sample with the reason; reading
    resumes after it."""
    found: dict[str, list[_Member] | Sample] = {}
    end = 0
    try:
        with tarfile.open(tar, "r:", ignore_zeros=True) as file, tar.open("rb") as content:
            for member in file:
                _check_gap(content, end, member.offset, found)
                _take(tar, file, member, found)
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK if member.isreg() else member.offset_data
            _check_gap(content, end, tar.stat().st_size, found)
    except (tarfile.TarError, OSError, EOFError) as error:
        _broken(found, " ".join(str(error).split()) or type(error).__name__)
    samples: dict[str, Sample] = {}
    for key, members in found.items():
        if isinstance(members, Sample):
            samples[key] = members
        elif any(member.suffix in KNOWN or member.broken for member in members):
            _join(key, [(member, member.suffix) for member in members], samples)
        else:
            for each in members:
                whole = str(each.name).removesuffix(each.name.suffix)
                _join(whole, [(each, each.name.suffix.lower())], samples)
    return samples


def no_image(sample: Sample) -> str:
    """Return the reason for a sample without an image."""
    found = ", ".join(sample.others[:3])
    return "has no image" + (f"; has {found}, wanted .jpg or similar" if found else "")


def captions_of(sample: Sample) -> tuple[str, ...]:
    if sample.text is not None:
        return (sample.text,)
    key = next((key for key in CAPTION_KEYS if key in sample.record), None)
    return captions(sample.record[key]) if key else ()


def _take(tar: Path, file: tarfile.TarFile, member: tarfile.TarInfo, found: dict[str, list[_Member] | Sample]) -> None:
    name = PurePosixPath(member.name)
    if member.isdir() or name.name.startswith(".") or "__MACOSX" in name.parts:
        return
    stem, dot, suffix = name.name.partition(".")
    members = found.setdefault((name.parent / stem).as_posix(), [])
    content, broken = None, ""
    if not member.isfile():
        broken = f"has a member {member.name} that is a link, wanted a file"
    elif name.is_absolute() or ".." in name.parts:
        broken = f"has a member {member.name!r}, whose name points outside the tar"
    elif name.suffix.lower() in (*TEXTS, ".json"):
        if member.size > MAX_TEXT:
            broken = f"{member.name} has {member.size:,} bytes, wanted at most {MAX_TEXT:,}"
        else:
            stream = file.extractfile(member)
            content = stream.read() if stream else b""
    part = FilePart(tar.absolute(), member.offset_data, member.size, name.name)
    if isinstance(members, list):
        members.append(_Member(name, (dot + suffix).lower(), part, content, broken))


def _join(key: str, members: Sequence[tuple[_Member, str]], samples: dict[str, Sample]) -> None:
    """Add the members of one key, each with its effective suffix, to the key's sample."""
    sample = samples.setdefault(key, Sample())
    seen: set[str] = set()
    for member, suffix in members:
        if member.broken:
            sample.broken = member.broken
        elif suffix in seen and suffix in KNOWN:
            samples[f"{key} ({len(samples)})"] = Sample(broken=f"has a second {member.name.name}; wanted one per key")
        elif suffix in SUFFIXES:
            sample.image = sample.image or member.part
            sample.broken = sample.broken or ("" if member.part.size else f"{member.name} is empty")
        elif suffix in KNOWN and member.content is not None:
            _read(member, suffix, sample)
        else:
            sample.others.append(suffix)
        seen.add(suffix)


def _read(member: _Member, suffix: str, sample: Sample) -> None:
    assert member.content is not None
    try:
        text = decoded(member.content)
        record = None if suffix != ".json" else parse_json(text)
    except ValueError as error:  # of the encoding or of JSON
        sample.broken = f"{member.name} cannot be read ({error})"
        return
    if suffix != ".json":
        sample.text = text
    elif isinstance(record, dict):
        sample.record = record
    else:
        sample.broken = f"{member.name} is not a JSON object"


def _expanded(pattern: str) -> list[str]:
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for number in numbers for name in _expanded(before + number + after)]


def _check_gap(content: BinaryIO, start: int, end: int, found: dict[str, list[_Member] | Sample]) -> None:
    """Record a broken sample if the bytes between two members are not zero."""
    if start < end:
        content.seek(start)
        if any(content.read(BLOCK)):
            _broken(found, f"no member can be read at byte {start}")


def _broken(found: dict[str, list[_Member] | Sample], reason: str) -> None:
    where = f"after {last}" if (last := next(reversed(found), None)) else "at its start"
    found[f"({where})"] = Sample(broken=f"is damaged: {reason}; copy the tar again")
