"""The manifest of a store, csaligner.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from csaligner.integrity import ErrorContext, read_sealed, write_sealed
from csaligner.parsing import checked
from csaligner.types import EncoderInfo, Modality

MANIFEST = "csaligner.json"
FORMAT_VERSION = 1
DTYPES = ("float32", "float16")
OWNER = ErrorContext("store", "delete the folder and embed again")


@dataclass(frozen=True)
class Shard:
    """rows: number of captions, or of images without captions; images: number of images; files: path below the
    store -> SHA-256, "" if unknown; truncated: number of captions truncated by the text encoder."""

    rows: int
    images: int
    files: Mapping[str, str]
    truncated: int = 0

    def file(self, folder: str) -> str | None:
        """Return the shard's file in img_emb, text_emb or metadata."""
        return next((name for name in self.files if name.startswith(f"{folder}/")), None)


@dataclass(frozen=True)
class Skipped:
    """A skipped image and the reason."""

    image_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """plan: SHA-256 over everything that determines the store's content (items, encoders, dtype).

    image, text: encoders of the rows; None for the missing modality of a store of one modality. dtype: number format
    of the .npy files; shard_size: images per shard; notes: the reader's notes; mean_norm: mean length of the rows, by
    modality, set when the store is complete. Rows are stored as encoded; EncoderInfo.normalized records whether they
    have length 1.
    """

    plan: str
    dataset: str
    attribution: str
    image: EncoderInfo | None
    text: EncoderInfo | None
    dtype: str
    shard_size: int
    empty_captions: int = 0
    without_caption: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    shards: tuple[Shard, ...] = ()
    mean_norm: Mapping[str, float] = field(default_factory=dict)
    complete: bool = False

    @property
    def n_images(self) -> int:
        return sum(shard.images for shard in self.shards)

    @property
    def n_captions(self) -> int:
        return self.n_rows if self.text else 0

    @property
    def n_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def encoders(self) -> dict[Modality, EncoderInfo]:
        """The encoders by modality."""
        sides: dict[Modality, EncoderInfo | None] = {"image": self.image, "text": self.text}
        return {side: info for side, info in sides.items() if info is not None}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically. Totals and fingerprints are for human readers; read_manifest ignores them."""
    value = {"format_version": FORMAT_VERSION} | asdict(manifest)
    for side, info in manifest.encoders.items():
        value[side] |= {"fingerprint": info.fingerprint}
    value |= {"n_images": manifest.n_images, "n_captions": manifest.n_captions}
    write_sealed(folder / MANIFEST, value)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest. Raises InputError if it is missing, does not parse, or has another format version."""
    return read_sealed(folder / MANIFEST, OWNER, _manifest, made_by="`csaligner embed`", version=FORMAT_VERSION)


def _manifest(value: Mapping[str, Any]) -> Manifest:
    manifest = checked(Manifest, value)
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise ValueError for values of the right type that are impossible."""
    if manifest.dtype not in DTYPES:
        raise ValueError(f"dtype: got {manifest.dtype!r}, wanted {' or '.join(DTYPES)}")
    for side, info in manifest.encoders.items():
        if info.dim < 1 or info.modality != side:
            raise ValueError(f"{side}: {info.dim} dimensions of {info.modality}s")
    if not manifest.encoders:
        raise ValueError("image and text: wanted at least one")
    for shard in manifest.shards:
        if not 0 <= shard.images <= shard.rows:
            raise ValueError(f"shards: {shard.images} images in {shard.rows} rows")
        for name in shard.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\0" in name:
                raise ValueError(f"files: {name!r} is outside the store")
