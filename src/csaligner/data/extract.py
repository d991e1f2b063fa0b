"""Pictures and captions to a store of features: in shards, resumable, with broken pictures counted and left out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from csaligner.checks import CSAlignerError, InputError, check_choice, check_non_negative
from csaligner.types import Dataset, Encoder, EncoderInfo, Item

from .decode import Decoded, decoded_batches
from .items import Cleaned, clean_items
from .manifest import MANIFEST, Manifest, Skipped, read_manifest, write_manifest
from .shards import Rows, damaged_files, remove_temporaries, write_shard
from .sources import stamp_of, written
from .split import item_split
from .store import DTYPES, DType, Store, finish

ProgressCallback = Callable[[int, int], object]  # pictures done, pictures in all


@dataclass(frozen=True)
class ExtractSettings:
    """shard_size: pictures a shard, the unit that an interruption can lose; batch_size: pictures a forward pass;
    workers: processes that decode pictures, 0: none; max_bad: the share of broken pictures that is put up with;
    dtype: of the files."""

    shard_size: int = 512
    batch_size: int = 64
    workers: int = 2
    max_bad: float = 0.05
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name, least in (("shard_size", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, wanted at least {least}")
        if check_non_negative("max_bad", self.max_bad) > 1:
            raise InputError(f"max_bad: got {self.max_bad:g}, wanted a share between 0 and 1")
        check_choice("dtype", self.dtype, DTYPES)


def embed(
    dataset: Dataset,
    image_encoder: Encoder,
    text_encoder: Encoder,
    out: Path | str,
    settings: ExtractSettings | None = None,
    progress: ProgressCallback | None = None,
) -> Store:
    """Encode every picture and caption of `dataset` into a store at `out`.

    A finished store of the same items and encoders is reused at once. An unfinished one is gone on with, shard by
    shard (its shard size stays); the result is the same to the byte as without the interruption. Pictures that
    cannot be read are left out and listed in the store.

    Raises InputError, touching nothing, where `out` holds anything else; and where more than max_bad of the
    pictures are broken: the finished shards stay, and a call with a larger max_bad goes on from them.
    """
    out, settings = Path(out), settings or ExtractSettings()
    cleaned = clean_items(dataset)
    manifest = _claim(out, _plan(dataset, cleaned, (image_encoder.info, text_encoder.info), settings))
    _check_bad(manifest, len(cleaned.items), settings.max_bad)
    if not manifest.complete:
        work = _Work(cleaned.items, image_encoder, text_encoder, out, settings, progress)
        with _threads_beside(settings.workers):
            manifest = work.run(manifest)
        if not manifest.n_images:
            raise InputError(f"{manifest.dataset}: not one picture could be used; first: {manifest.skipped[0].reason}")
        finish(out, manifest)
    return Store.open(out)


def _plan(
    dataset: Dataset, cleaned: Cleaned, encoders: tuple[EncoderInfo, EncoderInfo], settings: ExtractSettings
) -> Manifest:
    """The manifest of the empty store; its plan covers ids, paths, file sizes, captions, groups and splits."""
    image, text = encoders
    for info, modality in ((image, "image"), (text, "text")):
        if info.modality != modality:
            raise InputError(f"{modality}_encoder: {info.id} encodes {info.modality}s")
    digest = hashlib.sha256(json.dumps([image.fingerprint, text.fingerprint, settings.dtype]).encode())
    for item in cleaned.items:
        row = [item.image_id, *stamp_of(item.image), item.captions, item.group, item_split(item)]
        digest.update(json.dumps(row).encode())
    return Manifest(
        plan=digest.hexdigest(),
        dataset=dataset.name,
        attribution=dataset.attribution,
        image=image,
        text=text,
        dtype=settings.dtype,
        shard_size=settings.shard_size,
        empty_captions=cleaned.empty_captions,
        without_caption=cleaned.without_caption,
    )


def _claim(out: Path, wanted: Manifest) -> Manifest:
    """Make `out` the place of this store, or take up what is there of it already."""
    if not (out / MANIFEST).exists():
        if out.exists() and (not out.is_dir() or any(p for p in out.iterdir() if not p.name.endswith(".tmp"))):
            raise InputError(f"out: {out} exists and holds no csaligner store; choose an empty or a new folder")
        out.mkdir(parents=True, exist_ok=True)
        write_manifest(out, wanted)
        return wanted
    found = read_manifest(out)
    if found.plan != wanted.plan:
        raise InputError(
            f"out: {out} holds a store of other {_difference(found, wanted)}; choose another folder or delete it"
        )
    if found.complete:
        return found
    damaged = damaged_files(out, found.shards)
    if damaged:
        raise InputError(
            f"out: {out}: damaged or missing files: {', '.join(damaged)}; delete the folder and embed again"
        )
    remove_temporaries(out)
    return found


def _difference(found: Manifest, wanted: Manifest) -> str:
    for side, info in found.encoders.items():
        if wanted.encoders.get(side) != info:
            return f"{side} features ({info.id}, {info.fingerprint})"
    return f"data ({found.dataset}, {found.dtype})"


def _check_bad(manifest: Manifest, total: int, max_bad: float) -> None:
    bad = manifest.skipped
    if len(bad) > max_bad * total:
        first = "; ".join(entry.reason for entry in bad[:3])
        raise InputError(
            f"{manifest.dataset}: {len(bad)} of {total} pictures cannot be used, more than max_bad = {max_bad:g} "
            f"allows; mend them or raise max_bad (first: {first})"
        )


@dataclass(frozen=True)
class _Work:
    items: Sequence[Item]
    image_encoder: Encoder
    text_encoder: Encoder
    out: Path
    settings: ExtractSettings
    progress: ProgressCallback | None

    def run(self, manifest: Manifest) -> Manifest:
        """Every shard that the manifest does not list yet; the manifest is written after each."""
        size, total = manifest.shard_size, len(self.items)
        starts = range(len(manifest.shards) * size, total, size)
        shards = [range(start, min(start + size, total)) for start in starts]
        batches = self._batches(shards)
        self._tell(starts.start if shards else total)
        for shard in shards:
            rows, skipped = self._shard(shard, batches)
            written = write_shard(self.out, len(manifest.shards), rows, manifest.dtype)
            manifest = replace(manifest, shards=(*manifest.shards, written), skipped=(*manifest.skipped, *skipped))
            write_manifest(self.out, manifest)
            _check_bad(manifest, total, self.settings.max_bad)
        return manifest

    def _batches(self, shards: Sequence[range]) -> Iterator[Decoded]:
        size = self.settings.batch_size
        index = [list(shard[start : start + size]) for shard in shards for start in range(0, len(shard), size)]
        return decoded_batches(self.items, self.image_encoder, index, self.settings.workers)

    def _shard(self, shard: range, batches: Iterator[Decoded]) -> tuple[Rows, list[Skipped]]:
        features: list[Tensor] = []
        used: list[Item] = []
        skipped: list[Skipped] = []
        for batch in islice(batches, math.ceil(len(shard) / self.settings.batch_size)):
            bad = dict(batch.bad)
            if batch.good:
                x = _encode(self.image_encoder, batch.prepared)
                finite = torch.isfinite(x).all(dim=1)
                broken = [i for i, ok in zip(batch.good, finite.tolist(), strict=True) if not ok]
                bad |= {i: f"{self.items[i].image}: its features are NaN or infinite" for i in broken}
                features.append(x[finite])
                used += [self.items[i] for i in batch.good if i not in bad]
            skipped += [Skipped(self.items[i].image_id, str(self.items[i].image), bad[i]) for i in sorted(bad)]
            self._tell(batch.last + 1)
        return self._rows(features, used), skipped

    def _rows(self, features: Sequence[Tensor], used: Sequence[Item]) -> Rows:
        captions = [caption for item in used for caption in item.captions]
        if not captions:
            image, text = (torch.empty(0, e.info.dim) for e in (self.image_encoder, self.text_encoder))
            return Rows(image.numpy(), text.numpy(), [])
        text = _encode(self.text_encoder, [self.text_encoder.prepare(caption) for caption in captions])
        finite = torch.isfinite(text).all(dim=1)
        if not bool(finite.all()):
            caption = captions[int((~finite).nonzero()[0])]
            raise InputError(f"text_encoder: {self.text_encoder.info.id} gives NaN or infinity for {caption!r}")
        repeats = torch.tensor([len(item.captions) for item in used])
        metadata = [
            (item.image_id, caption, written(item.image), item_split(item), item.group)
            for item in used
            for caption in item.captions
        ]
        return Rows(torch.cat(list(features)).repeat_interleave(repeats, dim=0).numpy(), text.numpy(), metadata)

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.items))


@contextmanager
def _threads_beside(workers: int) -> Iterator[None]:
    """Leave cores to the workers: torch's threads wait for each other, and one that has no core holds up all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _encode(encoder: Encoder, prepared: Sequence[object]) -> Tensor:
    x = encoder.encode(prepared).detach().to("cpu", torch.float32)
    if x.shape != (len(prepared), encoder.info.dim):
        raise CSAlignerError(
            f"encoder {encoder.info.id} returned shape {tuple(x.shape)}, wanted {(len(prepared), encoder.info.dim)}"
        )
    return x
