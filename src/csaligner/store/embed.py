"""Embedding of a dataset into a feature store, in resumable shards; unreadable images are counted and skipped.

A shard is the unit of work of one process, several processes (torchrun) or a Ray cluster; its bytes are the same in
every case.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from csaligner.checks import InputError, check_choice, check_non_negative
from csaligner.datasets.clean import Cleaned, clean_items
from csaligner.datasets.images.source import stamp_of
from csaligner.datasets.split import item_split
from csaligner.distributed.processes import held_by_main, join_processes, on_main, rank, wait_for_all, world_size
from csaligner.locks import NAMES as LOCKS
from csaligner.locks import only_writer
from csaligner.types import Dataset, Encoder, EncoderInfo, Modality
from csaligner.wording import count_of

from .difference import difference
from .manifest import DTYPES, MANIFEST, Manifest, Skipped, read_manifest, write_manifest
from .shard_files import is_there, remove_temporaries
from .shard_maker import Encoders, ProgressCallback, Work
from .shard_records import Part, check_parts, join_parts, read_parts, remove_parts, write_part
from .store import DType, Store, finish
from .tokens import finish_tokens, token_file


@dataclass(frozen=True)
class ExtractSettings:
    """shard_size: images per shard; an interruption loses at most one shard. batch_size: images per forward pass;
    workers: number of processes that decode images, 0: decode in this process; max_bad: maximum fraction of unreadable
    images before the run fails; dtype: number format of the files; update: embed_dataset changes a finished store of
    other data to the dataset, and embeds only what differs (see update.py); tokens: also store the tokens of each item,
    at most this many, from the same forward pass (store/tokens.py); a finished store is not changed by it."""

    shard_size: int = 512
    batch_size: int = 64
    workers: int = 2
    max_bad: float = 0.05
    dtype: DType = "float32"
    update: bool = False
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("shard_size", 1), ("batch_size", 1), ("workers", 0), ("tokens", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, wanted at least {least}")
        if check_non_negative("max_bad", self.max_bad) > 1:
            raise InputError(f"max_bad: got {self.max_bad:g}, wanted a fraction between 0 and 1")
        check_choice("dtype", self.dtype, DTYPES)


def embed(
    dataset: Dataset,
    image_encoder: Encoder | None,
    text_encoder: Encoder | None,
    out: Path | str,
    settings: ExtractSettings | None = None,
    progress: ProgressCallback | None = None,
) -> Store:
    """Encode every image and caption of `dataset` into a store at `out`.

    Without a text encoder the store holds only images, with or without captions; without an image encoder it holds
    only captions, and no image is read.

    A finished store of the same items and encoders is reused. An unfinished one is resumed, with its shard size; the
    result is identical, byte for byte, to that of an uninterrupted run. Unreadable images are skipped and listed in
    the store. Under torchrun the ranks divide the shards; `out` must be a folder shared by all of them.

    Raises InputError, without changing anything, if `out` holds anything else or another process writes to it; and if
    more than max_bad of the images are unreadable: finished shards are kept, and a call with a larger max_bad resumes.
    """
    join_processes()
    job = Job.of(dataset, Encoders(image_encoder, text_encoder), Path(out), settings or ExtractSettings())
    with held_by_main(job.claimed) as todo:
        bad = list(job.skipped())
        for part in job.work.run(todo[rank() :: world_size()], job.progress(todo, progress)):
            bad += part.skipped
            job.check_bad(bad)
        wait_for_all()
        on_main(job.finish)
    wait_for_all()
    return Store.open(out)


@dataclass(frozen=True)
class Job:
    """The embedding of a dataset into a folder."""

    work: Work
    wanted: Manifest
    max_bad: float

    @classmethod
    def of(cls, dataset: Dataset, encoders: Encoders, out: Path, settings: ExtractSettings) -> Job:
        """Plan the embedding without writing anything; an existing store keeps its shard size."""
        infos = {side: encoder.info for side, encoder in _sides(encoders).items()}
        for side, info in infos.items():
            if info.modality != side:
                raise InputError(f"{side}_encoder: {info.id} encodes {info.modality}s")
        cleaned = clean_items(dataset, sides=tuple(infos))
        wanted = _plan(dataset, cleaned, infos, settings)
        size = read_manifest(out).shard_size if (out / MANIFEST).is_file() else settings.shard_size
        how = (size, settings.dtype, settings.batch_size, settings.workers, settings.tokens)
        work = Work(cleaned.items, encoders, out, *how)
        return cls(work, wanted, settings.max_bad)

    @contextmanager
    def claimed(self) -> Iterator[list[int]]:
        """Lock the folder, create the store or resume an unfinished one, and give the numbers of the missing shards."""

        out = self.work.out
        self._check_free()
        with only_writer(out):
            out.mkdir(parents=True, exist_ok=True)
            if not (out / MANIFEST).exists():
                write_manifest(out, self.wanted)
            found = self._found()
            if found.complete:
                found = self._without_lost(found)
            self.check_bad(found.skipped if found.complete else self.skipped())
            if found.complete:
                remove_parts(out)
                yield []
                return
            parts = {number: part for number, part in read_parts(out).items() if is_there(out, part.shard)}
            if self.work.tokens is not None:
                parts = {number: part for number, part in parts.items() if token_file(out, number).is_file()}
            check_parts(out, parts)
            remove_temporaries(out)
            count = -(-len(self.work.items) // found.shard_size)
            yield [number for number in range(count) if number not in parts]

    def _without_lost(self, found: Manifest) -> Manifest:
        """Return the manifest of a finished store, marked as unfinished if files are missing: their shards are made
        again."""
        out = self.work.out
        lost = {number for number, shard in enumerate(found.shards) if not is_there(out, shard)}
        if not lost:
            return found
        for number in set(range(len(found.shards))) - lost:
            ids = {self.work.items[i].image_id for i in self.work.range_of(number)}
            skipped = tuple(entry for entry in found.skipped if entry.image_id in ids)
            write_part(out, number, Part(found.shards[number], skipped))
        unfinished = replace(self.wanted, shard_size=found.shard_size)
        write_manifest(out, unfinished)
        return unfinished

    def progress(self, todo: Sequence[int], report: ProgressCallback | None) -> ProgressCallback | None:
        """Return a callback that also counts the existing shards; with several ranks each reports its own shards."""
        if report is None or world_size() > 1:
            return report
        before = len(self.work.items) - sum(len(self.work.range_of(number)) for number in todo)
        return lambda done, total: report(before + done, before + total)

    def skipped(self) -> list[Skipped]:
        """Return the images skipped by earlier calls."""
        return [entry for part in read_parts(self.work.out).values() for entry in part.skipped]

    def finish(self) -> None:
        """Join the finished shards into the store, unless that is already done."""
        out = self.work.out
        manifest = read_manifest(out)
        if manifest.complete:
            return
        manifest = join_parts(manifest, read_parts(out))
        self.check_bad(manifest.skipped)
        if not manifest.n_rows:
            raise InputError(f"{manifest.dataset}: no image could be used (first: {manifest.skipped[0].reason})")
        finish(out, manifest)
        if self.work.tokens is not None:
            finish_tokens(out, manifest.plan, len(manifest.shards), self.work.tokens)
        remove_parts(out)

    def check_bad(self, bad: Sequence[Skipped]) -> None:
        check_bad(self.wanted.dataset, bad, len(self.work.items), self.max_bad)

    def _check_free(self) -> None:
        out = self.work.out
        if (out / MANIFEST).exists():
            self._found()
        elif out.exists() and (not out.is_dir() or any(p for p in out.iterdir() if not _ours(p.name))):
            raise InputError(f"out: {out} exists and is not a csaligner store; choose an empty or a new folder")

    def _found(self) -> Manifest:
        found = read_manifest(self.work.out)
        if found.plan != self.wanted.plan:
            what, fix = _difference(found, self.wanted), "choose another folder or delete it"
            if found.complete and what.startswith("data") and found.dtype == self.wanted.dtype:
                with suppress(InputError):  # a damaged store
                    words = difference(Store.open(self.work.out), self.work.items).words
                    what, fix = f"{what}: {words}" if words else what, f"--update embeds what differs, or {fix}"
            raise InputError(f"out: {self.work.out} is a store of other {what}; {fix}")
        return found


def check_bad(dataset: str, bad: Sequence[Skipped], total: int, max_bad: float) -> None:
    """Raise InputError if more than max_bad of `total` images are skipped."""
    if len(bad) > max_bad * total:
        first = "; ".join(entry.reason for entry in bad[:3])
        raise InputError(
            f"{dataset}: {len(bad):,} of {count_of(total, 'image')} cannot be used, more than max_bad = {max_bad:g} "
            f"allows; fix them or raise max_bad (first: {first})"
        )


def _ours(name: str) -> bool:
    return name.endswith(".tmp") or name in LOCKS


def _sides(encoders: Encoders) -> dict[Modality, Encoder]:
    sides: dict[Modality, Encoder | None] = {"image": encoders.image, "text": encoders.text}
    found = {side: encoder for side, encoder in sides.items() if encoder is not None}
    if not found:
        raise InputError("image_encoder and text_encoder are both None; give at least one")
    return found


def _plan(
    dataset: Dataset, cleaned: Cleaned, infos: Mapping[Modality, EncoderInfo], settings: ExtractSettings
) -> Manifest:
    """Return the manifest of the empty store; its plan covers ids, paths, file sizes, captions, groups and splits."""
    fingerprints = [info.fingerprint for info in infos.values()]
    digest = hashlib.sha256(json.dumps([*fingerprints, settings.dtype]).encode())
    for item in cleaned.items:
        row = [item.image_id, *stamp_of(item.image), item.captions, item.group, item_split(item)]
        digest.update(json.dumps(row).encode())
    return Manifest(
        plan=digest.hexdigest(),
        dataset=dataset.name,
        attribution=dataset.attribution,
        image=infos.get("image"),
        text=infos.get("text"),
        dtype=settings.dtype,
        shard_size=settings.shard_size,
        empty_captions=cleaned.empty_captions,
        without_caption=cleaned.without_caption,
        notes=cleaned.notes,
    )


def _difference(found: Manifest, wanted: Manifest) -> str:
    for side, info in found.encoders.items():
        if wanted.encoders.get(side) != info:
            return f"{side} features ({info.id}, {info.fingerprint})"
    return f"data ({found.dataset}, {found.dtype})"
