"""Cache of encoder features on disk, by encoder and content: each image and text is encoded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.datasets.documents import Entry
from csaligner.datasets.images.load import ImageError
from csaligner.datasets.images.source import file_of
from csaligner.files import sha256_of, write_atomically
from csaligner.integrity import ErrorContext, load_tensors, save_tensors
from csaligner.store.decode_workers import prepared
from csaligner.types import Encoder, EncoderInfo, Modality

T = TypeVar("T")
K = TypeVar("K", bound=str)
OWNER = ErrorContext("feature cache", "it is made again")
A_PART: Mapping[Modality, int] = {"image": 32, "text": 256}  # encoded per step: at most this many are lost on a kill
MANY_PARTS = 64  # more files are joined into one
FEATURES, KEYS = "features", "keys"


class FeatureCache:
    """Features by encoder and SHA-256 of the content, in a folder with one subfolder per encoder.

    Every `put` writes one file, atomically. A damaged file is deleted, and its items are encoded again. Only one
    process may write at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, dict[str, Tensor]] = {}
        self._digests: dict[tuple[str, int, int], str] = {}

    def get(self, info: EncoderInfo, digest: str) -> Tensor | None:
        """Return the features (d,) of the content with that digest, None if they are not in the cache."""
        return self._of(info).get(digest)

    def find(self, info: EncoderInfo, entry: Entry) -> Tensor | None:
        """Return the features (d,) of an entry, None if they are not in the cache or its image cannot be read."""
        try:
            return self.get(info, self.digest(entry))
        except (OSError, ImageError):
            return None

    def put(self, info: EncoderInfo, digests: Sequence[str], features: Tensor) -> None:
        """Add the features (N, d) of N contents."""
        folder = self._folder / info.fingerprint
        self._of(info).update(zip(digests, features.unbind(), strict=True))
        numbers = [int(path.stem.split("-")[1]) for path in _parts(folder)]
        _write(folder / f"part-{max(numbers, default=-1) + 1:06}.safetensors", digests, features)

    def digest(self, entry: Entry) -> str:
        """Return digest_of(entry); a file is read again only if its size or time changed."""
        size, time = size_and_time(entry)
        if size < 0:
            return digest_of(entry)
        key = (entry.place, size, time)
        if key not in self._digests:
            self._digests[key] = digest_of(entry)
        return self._digests[key]

    def expect(self, place: str, size: int, mtime_ns: int, digest: str) -> None:
        """Record the digest of an image that is unchanged since it was indexed."""
        self._digests[place, size, mtime_ns] = digest

    def _of(self, info: EncoderInfo) -> dict[str, Tensor]:
        if info.fingerprint not in self._known:
            self._known[info.fingerprint] = _read(self._folder / info.fingerprint)
        return self._known[info.fingerprint]


def embed_entries(
    encoders: Mapping[Modality, Encoder],
    entries: Iterable[Entry],
    cache: FeatureCache,
    progress: Callable[[int, int], object] | None = None,
    workers: int = 2,
    say: Callable[[str], object] | None = None,
    skip: Callable[[str], object] | None = None,
) -> int:
    """Encode the entries that are not in the cache yet; returns their number.

    say: called with one line if these are fewer than the entries. skip: called with the reason for each unreadable
    image, when it is found.
    """
    todo: dict[Modality, dict[str, Entry]] = {"image": {}, "text": {}}
    entries = list(entries)
    for entry in entries:
        try:
            digest = cache.digest(entry)
        except (OSError, ImageError):  # reported when it is indexed
            continue
        if cache.get(encoders[entry.modality].info, digest) is None:
            todo[entry.modality].setdefault(digest, entry)
    done, total = 0, sum(map(len, todo.values()))
    if say and 0 < total < len(entries):
        say(f"embedding {total:,} of {len(entries):,} images and texts: the others are duplicates or embedded already")
    with ThreadPoolExecutor(workers) as pool:
        for modality, part in alternating({side: list(work.items()) for side, work in todo.items()}, A_PART):
            encoder = encoders[modality]
            ready = list(pool.map(lambda pair, encoder=encoder: _prepared(encoder, pair[1]), part))
            good = [(d, value) for (d, _), value in zip(part, ready, strict=True) if not isinstance(value, ImageError)]
            for value in ready:
                if skip and isinstance(value, ImageError):
                    skip(str(value))
            if good:
                cache.put(encoder.info, [digest for digest, _ in good], _encode(encoder, [value for _, value in good]))
            done += len(part)
            if progress:
                progress(done, total)
    return total


def digest_of(entry: Entry) -> str:
    """Return the SHA-256 of an image file or of a text. Raises OSError and ImageError for an unreadable image."""
    if entry.modality == "text" or entry.path is None:
        return hashlib.sha256(entry.text.encode("utf-8", "surrogatepass")).hexdigest()
    if isinstance(entry.path, Path):
        return sha256_of(entry.path)
    return hashlib.sha256(entry.path.read()).hexdigest()


def size_and_time(entry: Entry) -> tuple[int, int]:
    """Return size and time of the file of an image, -1 for texts and missing files."""
    if entry.modality == "text" or entry.path is None:
        return -1, -1
    try:
        stat = file_of(entry.path).stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def alternating(work: Mapping[K, Sequence[T]], sizes: Mapping[K, int]) -> list[tuple[K, list[T]]]:
    """Cut the work of all kinds of items into batches, in the order of the fraction of each that lies before them, so
    that the rate is even: an image takes much longer than a text."""
    batches = []
    for kind, size in sizes.items():
        items = work[kind]
        batches += [(n / len(items), kind, list(items[n : n + size])) for n in range(0, len(items), size)]
    return [(kind, part) for _, kind, part in sorted(batches, key=lambda batch: batch[:2])]


def _prepared(encoder: Encoder, entry: Entry) -> Any:
    """Preprocess an entry; an ImageError is returned, not raised."""
    try:
        return prepared(encoder, entry.text if entry.modality == "text" else entry.path, entry.modality)
    except ImageError as error:
        return error


def _encode(encoder: Encoder, ready: list[Any]) -> Tensor:
    batch = torch.stack(ready) if isinstance(ready[0], Tensor) else ready
    return encoder.encode(cast(Sequence[Any], batch)).float()


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.safetensors"))


def _read(folder: Path) -> dict[str, Tensor]:
    """Read all parts; delete damaged ones, and join many into one."""
    found: dict[str, Tensor] = {}
    parts = _parts(folder)
    for path in parts:
        found.update(_read_part(path))
    if len(parts) > MANY_PARTS and found:
        _write(parts[0], list(found), torch.stack(list(found.values())))
        for path in parts[1:]:
            path.unlink(missing_ok=True)
    return found


def _read_part(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_tensors(path, OWNER)
        keys = [bytes(row).hex() for row in tensors[KEYS].numpy()]
        return dict(zip(keys, tensors[FEATURES].unbind(), strict=True))
    except (InputError, KeyError, ValueError):
        path.unlink(missing_ok=True)
        return {}


def _write(path: Path, digests: Sequence[str], features: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = torch.tensor([list(bytes.fromhex(digest)) for digest in digests], dtype=torch.uint8)
    write_atomically(path, lambda temporary: save_tensors({KEYS: keys, FEATURES: features}, temporary))
