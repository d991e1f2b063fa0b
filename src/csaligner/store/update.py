"""Update of a finished store to a changed dataset: rows of unchanged items are copied, only the others are embedded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from csaligner.checks import InputError
from csaligner.distributed.processes import world_size
from csaligner.files import recover_folder, write_folder
from csaligner.locks import only_writer
from csaligner.types import Dataset, Encoder, Item, Modality

from .difference import Difference, difference
from .embed import ExtractSettings, Job, check_bad, embed
from .manifest import MANIFEST, Manifest, Shard, Skipped, read_manifest, write_manifest
from .shard_files import COLUMNS, Array, ShardRows, is_there, remove_temporaries, write_shard
from .shard_maker import Encoders, ProgressCallback, Work
from .shard_records import join_parts, read_parts
from .store import SIDES, Store, finish


def update(
    dataset: Dataset,
    image_encoder: Encoder | None,
    text_encoder: Encoder | None,
    out: Path | str,
    settings: ExtractSettings | None = None,
    progress: ProgressCallback | None = None,
) -> tuple[Store, str]:
    """Update the finished store at `out` to `dataset`; return it with the differences in words, "" if there are none.

    Only new and changed items are embedded (see `difference`), in resumable shards next to the store; then the store is
    replaced as a whole. Its plan is that of the dataset, so that `embed` reuses it. Without a finished store at `out`
    this is `embed`. Tokens of the store are not kept; `embed --tokens` makes them again.

    Raises InputError for another encoder or number format, too many unreadable images, and several processes.
    """
    out = Path(out)
    if world_size() == 1 and out.parent.is_dir():
        with only_writer(out):
            recover_folder(out)
    if not (out / MANIFEST).is_file() or not read_manifest(out).complete:
        return embed(dataset, image_encoder, text_encoder, out, settings, progress), ""
    if world_size() > 1:
        raise InputError("update: got several processes, wanted one; run it without torchrun")
    job = Job.of(dataset, Encoders(image_encoder, text_encoder), out, settings or ExtractSettings())
    old = read_manifest(out)
    if old.plan == job.wanted.plan and not _edited(out, job):
        return embed(dataset, image_encoder, text_encoder, out, settings, progress), ""
    if old.encoders != job.wanted.encoders or old.dtype != job.wanted.dtype:
        raise InputError(f"out: {out} is a store of other encoders or another number format; choose another folder")
    with only_writer(out):
        store = Store.open(out)
        found = difference(store, job.work.items)
        fresh = _embedded(replace(job.work, items=[*found.new, *found.changed]), job.wanted, progress)
        skipped = _in_order(job.work.items, found, fresh)
        check_bad(job.wanted.dataset, skipped, len(job.work.items), job.max_bad)
        write_folder(out, lambda folder: _write(folder, job, (store, fresh), found, skipped))
        shutil.rmtree(fresh.folder, ignore_errors=True)
    return Store.open(out), found.words


def _edited(out: Path, job: Job) -> bool:
    """Whether files of a store with the same plan were written after it was finished. A damaged store: False, since
    embed names the damage or writes it again."""
    try:
        return bool(difference(Store.open(out), job.work.items).words)
    except InputError:
        return False


@dataclass(frozen=True)
class _Fresh:
    """The embedded new items: a folder of shards, and their manifest."""

    folder: Path
    manifest: Manifest


def _embedded(work: Work, wanted: Manifest, progress: ProgressCallback | None) -> _Fresh:
    """Embed items into a folder next to the store; after an interruption, finished shards are kept."""
    folder = work.out.with_name(f".{work.out.name}.update")
    if folder.is_dir() and (not (folder / MANIFEST).is_file() or read_manifest(folder).plan != wanted.plan):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_manifest(folder, replace(wanted, shard_size=work.shard_size))
    remove_temporaries(folder)
    work = replace(work, out=folder)
    done = {number for number, part in read_parts(folder).items() if is_there(folder, part.shard)}
    todo = [number for number in range(-(-len(work.items) // work.shard_size)) if number not in done]
    for _ in work.run(todo, progress):
        pass
    return _Fresh(folder, join_parts(wanted, read_parts(folder)))


def _in_order(items: Sequence[Item], found: Difference, fresh: _Fresh) -> list[Skipped]:
    skipped = found.still_bad | {entry.image_id: entry for entry in fresh.manifest.skipped}
    return [skipped[item.image_id] for item in items if item.image_id in skipped]


def _write(folder: Path, job: Job, stores: tuple[Store, _Fresh], found: Difference, skipped: Sequence[Skipped]) -> None:
    """Write the updated store: the rows of each item from the old store or from the new shards."""
    old, fresh = stores
    size = job.work.shard_size
    bad = {entry.image_id for entry in skipped}
    made = Store(fresh.folder, fresh.manifest)
    columns = {store: [store.column(name) for name in COLUMNS] for store in (old, made) if store.n_rows}
    where: dict[str, tuple[Store, list[int]]] = {name: (old, rows) for name, rows in found.kept.items()}
    for row, name in enumerate(columns[made][0] if made in columns else ()):
        where.setdefault(name, (made, []))[1].append(row)
    shards: list[Shard] = []
    for start in range(0, len(job.work.items), size):
        used = [item for item in job.work.items[start : start + size] if item.image_id not in bad]
        rows = [(store, row) for item in used for store, numbers in [where[item.image_id]] for row in numbers]
        image, text = (_features((old, made), rows, side) for side in SIDES)
        metadata = [tuple(column[row] for column in columns[store]) for store, row in rows]
        shards.append(write_shard(folder, len(shards), ShardRows(image, text, metadata), job.work.dtype))
    # the captions of removed items are not known to have been truncated
    truncated = sum(shard.truncated for shard in (*old.manifest.shards, *fresh.manifest.shards))
    shards[0] = replace(shards[0], truncated=min(truncated, sum(shard.rows for shard in shards)))
    manifest = replace(job.wanted, shard_size=size, shards=tuple(shards), skipped=tuple(skipped))
    if not manifest.n_rows:
        raise InputError(f"{manifest.dataset}: no image could be used (first: {skipped[0].reason})")
    finish(folder, manifest)


def _features(stores: Sequence[Store], rows: Sequence[tuple[Store, int]], side: Modality) -> Array | None:
    """Return the rows (R, d) of one modality; None if the stores do not have it."""
    if side not in stores[0].sides:
        return None
    found = np.empty((len(rows), stores[0].encoders[side].dim), dtype=np.float32)
    for store in stores:
        places = [place for place, (owner, _) in enumerate(rows) if owner is store]
        if places:
            found[places] = store.rows(side, [rows[place][1] for place in places]).numpy()
    return found
