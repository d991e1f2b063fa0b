"""The feature store: a folder in clip-retrieval's layout with a manifest, csaligner.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csaligner.checks import InputError, as_features, check_choice, check_length
from csaligner.datasets.images.source import from_uri
from csaligner.datasets.split import split_of
from csaligner.files import sha256_of, write_folder
from csaligner.paired_features import checked_owners
from csaligner.remote import copy_of
from csaligner.types import SPLITS, EncoderInfo, ImageSource, Modality, PairedFeatures, Split
from csaligner.urls import address, is_url
from csaligner.wording import count_of

from .manifest import DTYPES, MANIFEST, Manifest, read_manifest, write_manifest
from .row_metadata import Index, Metadata, Read
from .row_reader import RowReader
from .shard_files import ShardRows, array_file, damaged_files, write_shard

DType = Literal["float32", "float16"]
SIDES: tuple[Modality, ...] = ("image", "text")
PRECOMPUTED = "precomputed:"  # before the name of the model of imported features


@dataclass(frozen=True)
class Pairing:
    """Pairing of the rows of a store, N images and M captions, all int64; row numbers for Store.rows.

    image_rows: (N,), the first row of each image; text_rows: (M,); text_to_image: (M,), the image of each caption
    as an index into image_rows.
    """

    image_rows: Tensor
    text_rows: Tensor
    text_to_image: Tensor


class Store:
    """A finished store, open for reading. Rows are read on demand and matched by image id.

    A store of one modality (`sides`) has rows but no pairs.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        verify: bool = True,
        metadata: Read | None = None,
    ) -> None:
        """Use Store.open. metadata: see Metadata."""
        self.path, self.manifest = path, manifest
        self.address = address(path)  # or the URL that it was opened from
        self._readers = {side: RowReader(path, manifest, side, verify) for side in manifest.encoders}
        self._metadata = Metadata(path, manifest, verify, metadata)

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> Store:
        """Open a folder written by `embed` or write_store, or one of clip-retrieval (see clip_retrieval.py).

        path: a folder, or the URL of one on object storage, which is copied into the cache (see remote.py).

        verify: compare the SHA-256 of each file with the manifest's: of metadata now, of features on first use.

        Raises InputError if the manifest is missing, incomplete or of another format version, or if a file is missing,
        damaged, or has another shape than in the manifest.
        """
        opened, path = path, copy_of(path, MANIFEST) if isinstance(path, str) and is_url(path) else Path(path)
        if not path.is_dir():
            raise InputError(f"store: no such folder: {path}")
        if not (path / MANIFEST).is_file():
            from .clip_retrieval import is_clip_retrieval, open_clip_retrieval

            if is_clip_retrieval(path):
                return open_clip_retrieval(path)
        manifest = read_manifest(path)
        if not manifest.complete:
            raise InputError(f"store: {path} is not finished; run the same `csaligner embed` again to resume")
        store = cls(path, manifest, verify=verify)
        store.address = address(opened)
        store.check()
        return store

    def check(self) -> None:
        """Raise InputError unless every file exists with the size in the manifest and the metadata is undamaged.

        Features are not read.
        """
        for reader in self._readers.values():
            reader.check_shapes()
        self._metadata.check()

    @property
    def sides(self) -> tuple[Modality, ...]:
        """The modalities of the store."""
        return tuple(self._readers)

    @property
    def n_rows(self) -> int:
        """Number of rows per modality: one per caption, with image rows repeated; without captions one per image."""
        return self.manifest.n_rows

    def rows(self, side: Modality, rows: npt.ArrayLike | Tensor) -> Tensor:
        """Return the features (len(rows), d) float32 of these rows, numbered from 0 over all shards, in that order.

        Reads only these rows. Raises InputError for a modality that the store does not have and for rows out of range.
        """
        reader = self._reader(side)
        wanted = np.asarray(rows, dtype=np.int64)
        if wanted.ndim != 1 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.n_rows):
            raise InputError(f"rows: got shape {wanted.shape}, wanted one list of numbers from 0 to {self.n_rows - 1}")
        return reader(wanted)

    def pairing(self, split: Split | None = None) -> Pairing:
        """Return the pairs of a split (None: of all), images in the order of their first row.

        Raises InputError if the split is empty or the store holds one modality.
        """
        for side in SIDES:
            self._reader(side)
        rows, codes = self._coded_rows(split)
        _, first = np.unique(codes, return_index=True)
        return Pairing(torch.from_numpy(rows[first]), torch.from_numpy(rows), torch.from_numpy(codes))

    def rows_of(self, side: Modality, split: Split | None = None) -> Tensor:
        """Return the distinct rows of one modality, (n,) int64: each image once, or every caption."""
        self._reader(side)
        rows, codes = self._coded_rows(split)
        if side == "text":
            return torch.from_numpy(rows)
        return torch.from_numpy(rows[np.unique(codes, return_index=True)[1]])

    def groups(self, rows: Tensor) -> list[str]:
        """Return the groups of these rows; a row without one is its own group."""
        values = self._metadata.column("group")
        return [values[row] or f"row {row}" for row in rows.tolist()]

    def items(self, side: Modality, rows: Tensor) -> list[Any]:
        """Return the captions, or image sources, of these rows; None if unknown."""
        values = self._metadata.column("caption" if side == "text" else "image_path")
        found = (values[row] or None for row in rows.tolist())
        return [from_uri(value) if value and side == "image" else value for value in found]

    def column(self, name: str) -> list[str]:
        """Return one column of shard_files.COLUMNS, by row."""
        return self._metadata.column(name)

    @property
    def n_images(self) -> int:
        return self.manifest.n_images

    @property
    def n_captions(self) -> int:
        return self.manifest.n_captions

    @property
    def image_fingerprint(self) -> str:
        return self._info("image").fingerprint

    @property
    def text_fingerprint(self) -> str:
        return self._info("text").fingerprint

    @property
    def encoders(self) -> Mapping[Modality, EncoderInfo]:
        return self.manifest.encoders

    @property
    def dataset(self) -> str:
        return self.manifest.dataset

    @property
    def attribution(self) -> str:
        return self.manifest.attribution

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the manifest, which contains the SHA-256 of every other file."""
        path = self.path / MANIFEST
        return sha256_of(path) if path.is_file() else self.manifest.plan

    @property
    def notes(self) -> tuple[str, ...]:
        """What was skipped or truncated, one line per kind."""
        m = self.manifest
        lines = []
        if m.skipped:
            first = m.skipped[0]
            lines.append(
                f"{len(m.skipped):,} of {count_of(m.n_images + len(m.skipped), 'image')} could not be used and were "
                f"skipped (first: {first.reason}); all are listed in {self.path / MANIFEST}"
            )
        if m.empty_captions:
            lines.append(f"captions that are empty or not text, dropped: {m.empty_captions}")
        if m.without_caption:
            lines.append(f"images without a caption, skipped: {len(m.without_caption)} (first: {m.without_caption[0]})")
        truncated = sum(shard.truncated for shard in m.shards)
        if truncated:
            lines.append(
                f"captions truncated by the text encoder ({m.text.id if m.text else ''}): {truncated} of {m.n_captions}"
                "; long_text=split in its name embeds all of it"
            )
        return (*lines, *m.notes)

    @property
    def counts(self) -> dict[Split, tuple[int, int]]:
        """(images, captions) of each split that is not empty."""
        found: dict[Split, tuple[int, int]] = {}
        for split in SPLITS:
            rows, codes = self._metadata.coded_rows(split)
            if len(rows):
                images = len(np.unique(codes)) if "image" in self.sides else 0
                found[split] = (images, len(rows) if "text" in self.sides else 0)
        return found

    @property
    def image_paths(self) -> Mapping[str, Path]:
        """Image id -> image file, for the images that are known to be separate files."""
        return {image_id: source for image_id, source in self.image_sources.items() if isinstance(source, Path)}

    @property
    def image_sources(self) -> Mapping[str, ImageSource]:
        """Image id -> image source (a file or a part of one), if known."""
        pairs = zip(self._metadata.column("image_id"), self._metadata.column("image_path"), strict=True)
        return {image_id: from_uri(path) for image_id, path in pairs if path}

    def require(self, *, image: EncoderInfo | str | None = None, text: EncoderInfo | str | None = None) -> None:
        """Raise InputError unless the store was made by these encoders (or fingerprints); None: any encoder."""
        expected: dict[Modality, EncoderInfo | str | None] = {"image": image, "text": text}
        for side, wanted in expected.items():
            if wanted is None:
                continue
            made_by = self._info(side)
            fingerprint = wanted if isinstance(wanted, str) else wanted.fingerprint
            if fingerprint != made_by.fingerprint:
                name, fix = "the one", "give a store with features of that model"
                if not isinstance(wanted, str):
                    name, model = wanted.id, wanted.id.removeprefix(PRECOMPUTED)
                    features = f"import features of {model} with {wanted.dim} dimensions"
                    fix = features if model != wanted.id else f"embed the data with {model}"
                raise InputError(
                    f"store: the {side} features of {self.path} come from {made_by.id} ({made_by.fingerprint}), "
                    f"wanted {name} ({fingerprint}); {fix}"
                )

    def features(self, split: Split | None = None) -> PairedFeatures:
        """Return all pairs of a split (None: of all splits) as float32 tensors, each image once.

        Images are in the order of their first row. Raises InputError if the split is empty.
        """
        pairing = self.pairing(split)
        ids, captions = self._metadata.column("image_id"), self._metadata.column("caption")
        return PairedFeatures(
            image=self.rows("image", pairing.image_rows),
            text=self.rows("text", pairing.text_rows),
            text_to_image=pairing.text_to_image,
            image_ids=tuple(ids[row] for row in pairing.image_rows.tolist()),
            captions=tuple(captions[row] for row in pairing.text_rows.tolist()),
        )

    def verify(self) -> None:
        """Read every file; InputError names the ones that are not as they were written.

        Of a file without a recorded SHA-256 (clip-retrieval's) only presence, shape and precision can be checked.
        """
        damaged = damaged_files(self.path, self.manifest.shards)
        if damaged:
            raise InputError(
                f"store: {self.path}: damaged or missing files: {', '.join(damaged)}; delete these and embed again"
            )
        self.check()

    def _info(self, side: Modality) -> EncoderInfo:
        self._reader(side)
        return self.manifest.encoders[side]

    def _reader(self, side: Modality) -> RowReader:
        check_choice("side", side, SIDES)
        if side not in self._readers:
            raise InputError(f"store: {self.path} holds no {side} features; give one that does")
        return self._readers[side]

    def _coded_rows(self, split: Split | None) -> tuple[Index, Index]:
        """Like Metadata.coded_rows. Raises InputError for an empty split."""
        if split is not None:
            check_choice("split", split, SPLITS)
        rows, codes = self._metadata.coded_rows(split)
        if not len(rows):
            what = "images" if "image" in self.sides else "captions"
            held = ", ".join(f"{n[0] or n[1]} {what} in {name}" for name, n in self.counts.items())
            raise InputError(f"store: {self.path} has no {what} in split {split!r}; it has {held}")
        return rows, codes


def finish(folder: Path, manifest: Manifest) -> None:
    """Compute the mean norms and mark the store as complete."""
    norms: dict[str, float] = {side: _mean_norm(folder, manifest, side) for side in manifest.encoders}
    write_manifest(folder, replace(manifest, mean_norm=norms, complete=True))


def _mean_norm(folder: Path, manifest: Manifest, side: Modality) -> float:
    total = 0.0
    for number in range(len(manifest.shards)):
        rows = np.load(folder / array_file(side, number), mmap_mode="r", allow_pickle=False)
        total += float(np.linalg.norm(rows.astype(np.float64), axis=1).sum())
    return total / manifest.n_rows


def write_store(
    path: Path | str,
    features: PairedFeatures,
    encoders: tuple[EncoderInfo, EncoderInfo],
    *,
    splits: Mapping[str, Split] | None = None,
    image_paths: Mapping[str, Path] | None = None,
    dataset: str = "arrays",
    dtype: DType = "float32",
) -> Store:
    """Write existing features as a store of one shard at `path`, which must not exist.

    encoders: encoders of the image and the text features. splits: image id -> split; default: split_of(image id).

    Raises InputError for features that are not finite, too large for dtype or of another dimension than the encoders',
    for a duplicate id, and for captions and images that do not match.
    """
    path = Path(path)
    check_choice("dtype", dtype, DTYPES)
    if path.exists():
        raise InputError(f"out: {path} exists; choose another folder or delete it")
    image, text = (_rows_of(*side) for side in (("image", features.image), ("text", features.text)))
    for side, x, info in (("image", image, encoders[0]), ("text", text, encoders[1])):
        if x.shape[1] != info.dim:
            raise InputError(f"{side}: has {x.shape[1]} dimensions, its encoder {info.id} gives {info.dim}")
        if info.modality != side:
            raise InputError(f"{side}: its encoder {info.id} encodes {info.modality}s")
    captions = features.captions or ("",) * len(text)
    check_length("captions", captions, len(text), "captions")
    owners = checked_owners(features, len(image), len(text))
    ids, paths = features.image_ids, image_paths or {}
    for image_id, split in (splits or {}).items():
        check_choice(f"splits of {image_id!r}", split, SPLITS)
    metadata = [
        (ids[i], caption, str(paths.get(ids[i], "")), (splits or {}).get(ids[i]) or split_of(ids[i]), ids[i])
        for i, caption in zip(owners, captions, strict=True)
    ]
    rows = ShardRows(image[owners].numpy(), text.numpy(), metadata)
    return write_one_shard(path, rows, encoders, dataset=dataset, dtype=dtype)


def write_one_shard(
    path: Path,
    rows: ShardRows,
    encoders: tuple[EncoderInfo | None, EncoderInfo | None],
    *,
    dataset: str = "arrays",
    dtype: DType = "float32",
) -> Store:
    """Write a store of one shard. encoders: of images and texts, None for a modality without rows."""
    side: Modality = "text" if rows.image is None else "image"

    def write(folder: Path) -> None:
        shard = write_shard(folder, 0, rows, dtype)
        manifest = Manifest(
            plan=shard.files[array_file(side, 0)],
            dataset=dataset,
            attribution="",
            image=encoders[0],
            text=encoders[1],
            dtype=dtype,
            shard_size=shard.images or shard.rows,
            shards=(shard,),
        )
        finish(folder, manifest)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_folder(path, write)
    return Store.open(path)


def _rows_of(name: str, value: Tensor) -> Tensor:
    """Return finite features on the CPU, in a dtype that NumPy supports."""
    x = as_features(name, value).detach().cpu()
    return x.float() if x.dtype == torch.bfloat16 else x
