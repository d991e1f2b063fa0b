"""From a dataset to a store: decode in worker processes, encode, write shard by shard, go on after a break."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from csaligner.checks import CSAlignerError, InputError
from csaligner.files import write_json
from csaligner.types import Dataset, Encoder, Item

from .images import ImageError, load_image
from .split import split_of
from .store import MANIFEST, ShardRows, Store, manifest, write_shard

PLAN = "plan.json"
DONE = "shards"  # one small file for each finished shard; gone when the store is finished


class ProgressCallback(Protocol):
    def __call__(self, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class ExtractSettings:
    """shard_size: images a shard; workers: processes that decode pictures, 0 for none; max_bad: the share of
    unreadable pictures above which the work stops; dtype: of the stored features."""

    shard_size: int = 1024
    batch_size: int = 64
    workers: int = 2
    max_bad: float = 0.05
    dtype: str = "float32"


def embed(
    dataset: Dataset,
    image_encoder: Encoder,
    text_encoder: Encoder,
    out: str | Path,
    settings: ExtractSettings | None = None,
    progress: ProgressCallback | None = None,
) -> Store:
    """Write the features of a dataset to the store `out` and open it.

    A finished store of the same items and encoders is returned as it is; an unfinished one goes on with the
    first shard that is missing, and ends with the same bytes as if nothing had happened. Pictures that cannot be
    read are skipped and listed in the manifest. Raises InputError: no items, an id twice, more than max_bad
    unreadable, or `out` holds something else (nothing is touched then).
    """
    settings, out = settings or ExtractSettings(), Path(out)
    items, dropped = _usable(dataset)
    plan = _plan(items, (image_encoder, text_encoder), settings)
    if _claim(out, plan):
        return Store.open(out)
    work = _Work(items, image_encoder, text_encoder, out, settings, progress or (lambda done, total: None))
    skipped = [*dropped, *work.run()]
    shards = [json.loads(_mark(out, n).read_text(encoding="utf-8")) for n in range(work.n_shards)]
    content = manifest(
        dataset=dataset.name,
        attribution=dataset.attribution,
        encoders=(image_encoder.info, text_encoder.info),
        dtype=settings.dtype,
        shards=[{"rows": s["rows"], "sha256": s["sha256"]} for s in shards],
        skipped=skipped,
        plan=plan,
    )
    write_json(out / MANIFEST, content)
    shutil.rmtree(out / DONE)
    (out / PLAN).unlink()
    return Store.open(out)


@dataclass
class _Work:
    items: Sequence[Item]
    image_encoder: Encoder
    text_encoder: Encoder
    out: Path
    settings: ExtractSettings
    progress: ProgressCallback

    @property
    def n_shards(self) -> int:
        return -(-len(self.items) // self.settings.shard_size)

    def run(self) -> list[str]:
        """Write the shards that are missing; returns the pictures that were skipped, of all shards."""
        skipped: list[str] = []
        todo = []
        for number in range(self.n_shards):
            if _mark(self.out, number).is_file():
                skipped += json.loads(_mark(self.out, number).read_text(encoding="utf-8"))["skipped"]
            else:
                todo.append(number)
        batches = iter(self._batches(todo))
        for number in todo:
            skipped += self._shard(number, batches, len(skipped))
        return skipped

    def _shard(self, number: int, batches: Iterator[list[_Decoded]], bad_before: int) -> list[str]:
        members = range(*self._bounds(number))
        images: dict[int, torch.Tensor] = {}
        skipped: list[str] = []
        for start in range(0, len(members), self.settings.batch_size):
            batch = next(batches)
            good = [d for d in batch if not isinstance(d.content, str)]
            skipped += [str(d.content) for d in batch if isinstance(d.content, str)]
            self._stop_if_too_bad(bad_before + len(skipped), skipped)
            if good:
                encoded = self.image_encoder.encode([d.content for d in good])
                images |= zip([d.index for d in good], encoded, strict=True)
            self.progress(members.start + min(start + self.settings.batch_size, len(members)), len(self.items))
        self._write(number, images, skipped)
        return skipped

    def _write(self, number: int, images: dict[int, torch.Tensor], skipped: list[str]) -> None:
        rows = [(index, caption) for index in images for caption in self.items[index].captions]
        texts = [self.text_encoder.prepare(caption) for _, caption in rows]
        dims = (self.image_encoder.info.dim, self.text_encoder.info.dim)
        image = torch.stack([images[i] for i, _ in rows]) if rows else torch.empty(0, dims[0])
        text = self.text_encoder.encode(texts) if rows else torch.empty(0, dims[1])
        owners = [self.items[i] for i, _ in rows]
        shard = ShardRows(
            _array("image", image, self.settings.dtype),
            _array("text", text, self.settings.dtype),
            [item.image_id for item in owners],
            [caption for _, caption in rows],
            [str(item.image) for item in owners],
            [item.split or split_of(item.group) for item in owners],
        )
        write_json(_mark(self.out, number), write_shard(self.out, number, shard) | {"skipped": skipped})

    def _stop_if_too_bad(self, bad: int, names: Sequence[str]) -> None:
        if bad > self.settings.max_bad * len(self.items):
            raise InputError(
                f"embed: {bad} of {len(self.items)} pictures cannot be read so far, more than max_bad = "
                f"{self.settings.max_bad:g} allows: {'; '.join(names[:3])}; mend them or raise max_bad"
            )

    def _batches(self, shards: Sequence[int]) -> DataLoader[Any]:
        size = self.settings.batch_size
        sampler = [
            list(range(first, min(first + size, self._bounds(number)[1])))
            for number in shards
            for first in range(*self._bounds(number), size)
        ]
        return DataLoader(
            _Pictures(self.items, self.image_encoder),
            batch_sampler=sampler,
            num_workers=self.settings.workers if sampler else 0,
            collate_fn=list,
        )

    def _bounds(self, number: int) -> tuple[int, int]:
        size = self.settings.shard_size
        return number * size, min((number + 1) * size, len(self.items))


@dataclass(frozen=True)
class _Decoded:
    """content: what the encoder's `prepare` made, or the words for why there is none."""

    index: int
    content: Any


class _Pictures(TorchDataset[_Decoded]):
    def __init__(self, items: Sequence[Item], encoder: Encoder) -> None:
        self._items, self._encoder = items, encoder

    def __getitem__(self, index: int) -> _Decoded:
        try:
            return _Decoded(index, self._encoder.prepare(load_image(self._items[index].image)))
        except ImageError as error:
            return _Decoded(index, str(error))


def _usable(dataset: Dataset) -> tuple[list[Item], list[str]]:
    """The items with their empty captions taken out, and what was left out, in words."""
    items: list[Item] = []
    dropped: list[str] = []
    seen: set[str] = set()
    for item in dataset.items():
        if item.image_id in seen:
            raise InputError(f"{dataset.name}: image id {item.image_id!r} is there twice; ids must differ")
        seen.add(item.image_id)
        captions = tuple(c for c in item.captions if c.strip())
        if len(captions) < len(item.captions):
            dropped.append(f"{item.image_id}: empty caption")
        if captions:
            items.append(Item(item.image_id, item.image, captions, item.group, item.split))
    if not items:
        raise InputError(f"{dataset.name}: no picture with a caption; look at the path and the column names")
    return items, dropped


def _plan(items: Sequence[Item], encoders: tuple[Encoder, Encoder], settings: ExtractSettings) -> str:
    """A hash of all that decides the bytes of the store."""
    content = [[i.image_id, str(i.image), i.captions, i.split or split_of(i.group)] for i in items]
    how = [e.info.fingerprint for e in encoders] + [settings.shard_size, settings.batch_size, settings.dtype]
    return hashlib.sha256(json.dumps([how, content]).encode()).hexdigest()


def _claim(out: Path, plan: str) -> bool:
    """Whether `out` is this store, finished. Otherwise it is new or unfinished, and now ours to write to."""
    if (out / MANIFEST).is_file():
        if Store.open(out).plan != plan:
            raise InputError(f"out: {out} holds a store of other data or encoders; choose another folder")
        return True
    if (out / PLAN).is_file():
        if json.loads((out / PLAN).read_text(encoding="utf-8"))["plan"] != plan:
            raise InputError(f"out: {out} holds an unfinished store of other data or encoders; choose another folder")
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out: {out} exists and holds no store; choose an empty or a new folder")
    (out / DONE).mkdir(parents=True)
    write_json(out / PLAN, {"plan": plan})
    return False


def _mark(out: Path, number: int) -> Path:
    return out / DONE / f"{number}.json"


def _array(side: str, features: torch.Tensor, dtype: str) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = features.numpy().astype(dtype)
    if not np.isfinite(array).all():
        raise CSAlignerError(f"embed: the {side} encoder gave NaN or infinity in {dtype}; try dtype float32")
    return array
