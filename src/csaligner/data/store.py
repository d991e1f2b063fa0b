"""Features on disk: a folder that clip-retrieval's tools can read, with csaligner.json beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from csaligner.checks import InputError, as_features, check_choice, check_length
from csaligner.files import sha256_of, write_folder
from csaligner.types import SPLITS, EncoderInfo, Modality, PairedFeatures, Split

from .manifest import MANIFEST, Manifest, read_manifest, write_manifest
from .shards import COLUMNS, Array, Rows, damaged_files, image_file, map_array, read_metadata, text_file, write_shard
from .split import split_of

DType = Literal["float32", "float16"]
DTYPES = ("float32", "float16")


class Store:
    """A finished store, open for reading. Files are mapped, not loaded; rows are matched by image id."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Use Store.open."""
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Raises InputError where there is no manifest, it is of another format version or not complete, or a file
        is missing or has another shape than the manifest says."""
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"store: no such folder: {path}")
        manifest = read_manifest(path)
        if not manifest.complete:
            raise InputError(
                f"store: {path} is not finished ({manifest.n_images} images so far); "
                "run the same `csaligner embed` again to go on"
            )
        store = cls(path, manifest)
        for number, shard in enumerate(manifest.shards):
            store._map("image", number)
            store._map("text", number)
            rows = len(store._metadata[number]["image_id"])
            if rows != shard.rows:
                raise InputError(f"store: {path}: shard {number} has {rows} rows of metadata, wanted {shard.rows}")
        return store

    @property
    def n_images(self) -> int:
        return self.manifest.n_images

    @property
    def n_captions(self) -> int:
        return self.manifest.n_captions

    @property
    def image_fingerprint(self) -> str:
        return self.manifest.image.fingerprint

    @property
    def text_fingerprint(self) -> str:
        return self.manifest.text.fingerprint

    @property
    def encoders(self) -> Mapping[Modality, EncoderInfo]:
        return {"image": self.manifest.image, "text": self.manifest.text}

    @property
    def dataset(self) -> str:
        return self.manifest.dataset

    @property
    def attribution(self) -> str:
        return self.manifest.attribution

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the manifest, which holds the SHA-256 of every other file."""
        return sha256_of(self.path / MANIFEST)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out on the way, one line each."""
        m = self.manifest
        lines = []
        if m.skipped:
            first = m.skipped[0]
            lines.append(
                f"{len(m.skipped)} of {m.n_images + len(m.skipped)} pictures could not be used and were left out "
                f"(first: {first.reason}); all are listed in {self.path / MANIFEST}"
            )
        if m.empty_captions:
            lines.append(f"empty captions, dropped: {m.empty_captions}")
        if m.without_caption:
            lines.append(
                f"pictures without a caption, left out: {len(m.without_caption)} (first: {m.without_caption[0]})"
            )
        return tuple(lines)

    @property
    def counts(self) -> dict[Split, tuple[int, int]]:
        """(images, captions) of each split that is not empty."""
        owners: dict[Split, list[str]] = {split: [] for split in SPLITS}
        for image_id, split in zip(self._columns["image_id"], self._columns["split"], strict=True):
            owners[cast(Split, split)].append(image_id)
        return {split: (len(set(ids)), len(ids)) for split, ids in owners.items() if ids}

    @property
    def image_paths(self) -> Mapping[str, Path]:
        """Image id -> the picture it was made from, where that is known."""
        columns = self._columns
        pairs = zip(columns["image_id"], columns["image_path"], strict=True)
        return {image_id: Path(path) for image_id, path in pairs if path}

    def require(self, *, image: EncoderInfo | str | None = None, text: EncoderInfo | str | None = None) -> None:
        """Raises InputError unless the store was made by these encoders (or these fingerprints); None: any will do."""
        for side, wanted in (("image", image), ("text", text)):
            if wanted is None:
                continue
            made_by = self.manifest.image if side == "image" else self.manifest.text
            fingerprint = wanted if isinstance(wanted, str) else wanted.fingerprint
            if fingerprint != made_by.fingerprint:
                name = "the one" if isinstance(wanted, str) else wanted.id
                raise InputError(
                    f"store: the {side} features of {self.path} come from {made_by.id} ({made_by.fingerprint}), "
                    f"wanted {name} ({fingerprint}); embed the data with that encoder"
                )

    def features(self, split: Split | None = None) -> PairedFeatures:
        """All pairs of a split (None: of all splits) as float32 tensors, each image once.

        Images stand in the order of their first row. Raises InputError where the split is empty.
        """
        columns = self._columns
        rows = range(len(columns["split"]))
        if split is not None:
            check_choice("split", split, SPLITS)
            rows = [row for row in rows if columns["split"][row] == split]  # type: ignore[assignment]
        if not rows:
            held = ", ".join(f"{images} images in {name}" for name, (images, _) in self.counts.items())
            raise InputError(f"store: {self.path} has no images in split {split!r}; it has {held}")
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(columns["image_id"][row], row)
        position = {image_id: i for i, image_id in enumerate(first)}
        return PairedFeatures(
            image=self._gather("image", list(first.values())),
            text=self._gather("text", list(rows)),
            text_to_image=torch.tensor([position[columns["image_id"][row]] for row in rows]),
            image_ids=tuple(first),
            captions=tuple(columns["caption"][row] for row in rows),
        )

    def verify(self) -> None:
        """Read every file; InputError names the ones that are not as they were written."""
        damaged = damaged_files(self.path, self.manifest.shards)
        if damaged:
            raise InputError(f"store: {self.path}: damaged or missing files: {', '.join(damaged)}; embed again")

    @cached_property
    def _metadata(self) -> list[dict[str, list[str]]]:
        try:
            return [read_metadata(self.path, number) for number in range(len(self.manifest.shards))]
        except (OSError, ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors, KeyErrors or OSErrors
            reason = str(error).splitlines()[0]
            raise InputError(f"store: metadata of {self.path} cannot be read ({reason}); embed again") from None

    @cached_property
    def _columns(self) -> dict[str, list[str]]:
        return {name: [value for shard in self._metadata for value in shard[name]] for name in COLUMNS}

    def _map(self, side: Modality, number: int) -> Array:
        dim = self.manifest.image.dim if side == "image" else self.manifest.text.dim
        name = image_file(number) if side == "image" else text_file(number)
        return map_array(self.path / name, (self.manifest.shards[number].rows, dim), self.manifest.dtype)

    def _gather(self, side: Modality, rows: list[int]) -> Tensor:
        """Rows, counted through all shards, in the order given and as float32."""
        wanted = np.asarray(rows)
        dim = self.manifest.image.dim if side == "image" else self.manifest.text.dim
        found = np.empty((len(rows), dim), dtype=np.float32)
        start = 0
        for number, shard in enumerate(self.manifest.shards):
            here = (wanted >= start) & (wanted < start + shard.rows)
            if here.any():
                found[here] = self._map(side, number)[wanted[here] - start]
            start += shard.rows
        return torch.from_numpy(found)


def finish(folder: Path, manifest: Manifest) -> None:
    """Measure the rows and mark the store as complete."""
    norms = {side: _mean_norm(folder, manifest, side) for side in ("image", "text")}
    write_manifest(folder, replace(manifest, mean_norm=norms, complete=True))


def _mean_norm(folder: Path, manifest: Manifest, side: str) -> float:
    name = image_file if side == "image" else text_file
    total = 0.0
    for number in range(len(manifest.shards)):
        rows = np.load(folder / name(number), mmap_mode="r", allow_pickle=False)
        total += float(np.linalg.norm(rows.astype(np.float64), axis=1).sum())
    return total / manifest.n_captions


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
    """A store from features that are there already, in one shard; at `path`, which must not exist yet.

    encoders: who made the image and the text features. splits: image id -> split, else split_of(image id).

    Raises InputError for features that are not finite, too large for dtype or not as the encoders give them, for an
    id that is there twice, and for captions and pictures that do not fit together.
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
    owners = _checked_owners(features, len(image), len(text))
    ids, paths = features.image_ids, image_paths or {}
    for image_id, split in (splits or {}).items():
        check_choice(f"splits of {image_id!r}", split, SPLITS)
    metadata = [
        (ids[i], caption, str(paths.get(ids[i], "")), (splits or {}).get(ids[i]) or split_of(ids[i]), ids[i])
        for i, caption in zip(owners, captions, strict=True)
    ]
    rows = Rows(image[owners].numpy(), text.numpy(), metadata)

    def write(folder: Path) -> None:
        shard = write_shard(folder, 0, rows, dtype)
        manifest = Manifest(
            plan=shard.files[image_file(0)],
            dataset=dataset,
            attribution="",
            image=encoders[0],
            text=encoders[1],
            dtype=dtype,
            shard_size=len(image),
            shards=(shard,),
        )
        finish(folder, manifest)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_folder(path, write)
    return Store.open(path)


def _rows_of(name: str, value: Tensor) -> Tensor:
    """Finite features on the CPU, in a precision that numpy knows too."""
    x = as_features(name, value).detach().cpu()
    return x.float() if x.dtype == torch.bfloat16 else x


def _checked_owners(features: PairedFeatures, images: int, captions: int) -> list[int]:
    """The row of each caption's picture. What a store could not give back is an InputError: ids are its only key."""
    ids, owners = features.image_ids, features.text_to_image
    check_length("image_ids", ids, images, "images")
    if len(set(ids)) < images:
        twice = Counter(ids).most_common(1)[0][0]
        raise InputError(f"image_ids: {twice!r} is there twice; give each picture its own id")
    if owners.ndim != 1 or owners.dtype not in (torch.int64, torch.int32):
        raise InputError(
            f"text_to_image: got {owners.dtype} of shape {tuple(owners.shape)}, wanted ({captions},) int64"
        )
    check_length("text_to_image", owners, captions, "captions")
    rows: list[int] = owners.tolist()
    outside = next((n for n, row in enumerate(rows) if not 0 <= row < images), None)
    if outside is not None:
        raise InputError(f"text_to_image: caption {outside} has picture {rows[outside]}; wanted 0 to {images - 1}")
    bare = set(range(images)) - set(rows)
    if bare:
        raise InputError(f"text_to_image: picture {ids[min(bare)]!r} has no caption; give it one or leave it out")
    return rows
