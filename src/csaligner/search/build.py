"""From data to an index, and from new data to the same index: only what changed is embedded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from csaligner.checks import InputError, check_choice
from csaligner.datasets.documents import INDEX_FILE, Entry, EntrySettings, Found, find_entries
from csaligner.datasets.images.hf_cell import SavedCell
from csaligner.datasets.images.load import ImageError, is_file
from csaligner.datasets.images.source import file_of
from csaligner.datasets.text_files import shown
from csaligner.files import disk_trouble, recover, recover_folder, sha256_of, write_folder
from csaligner.integrity import write_checksums
from csaligner.locks import NAMES as LOCKS
from csaligner.locks import only_writer
from csaligner.model import AlignedModel
from csaligner.types import Dataset, Encoder, ImageSource, Modality

from .approximate import build_approximate
from .index import ALIGNER, Index
from .lance_table import INDEX_TYPES, Items, Row, Stamp
from .manifest import IndexManifest, write_manifest
from .vector_spaces import raw_dim, raw_vectors

A_WRITE: Mapping[Modality, int] = {"image": 64, "text": 256}  # entries a write: what a kill can lose
AUTO_ROWS = 200_000  # above, `auto` builds an approximate index
Progress = Callable[[int, int], object]  # entries done, entries in all


@dataclass(frozen=True)
class BuildSettings:
    """entries: what of the data is indexed. approximate: exact, auto (ivf_sq above 200,000 rows), ivf_sq, ivf_pq or
    hnsw. workers: threads that decode pictures. raw: keep raw vectors, for comparison (half a vector more)."""

    entries: EntrySettings = field(default_factory=EntrySettings)
    approximate: str = "auto"
    workers: int = 2
    raw: bool = True

    def __post_init__(self) -> None:
        check_choice("approximate", self.approximate, ("exact", "auto", *INDEX_TYPES))
        if self.workers < 1:
            raise InputError(f"workers: got {self.workers}, wanted at least 1")


@dataclass(frozen=True)
class BuildReport:
    """How many entries were added, embedded again, deleted, and left as they were; skipped: reasons, a line each;
    notes: what the reader ignored or guessed."""

    added: int
    updated: int
    deleted: int
    unchanged: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Plan:
    embed: list[tuple[Entry, str]] = field(default_factory=list)  # with the digest
    restamp: dict[str, dict[str, Any]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    new: set[str] = field(default_factory=set)
    unchanged: int = 0
    skipped: list[str] = field(default_factory=list)


def build_index(
    data: str | Dataset,
    out: Path | str,
    run: str | None = None,
    *,
    encoders: Sequence[Encoder] = (),
    settings: BuildSettings | None = None,
    progress: Progress | None = None,
) -> tuple[Index, BuildReport]:
    """Index `data` at `out` with the aligner of `run`, or bring an index there up to date.

    data: see datasets.documents. run: what AlignedModel.open takes; not needed where the index exists. encoders:
    instead of those that the run names. Entries of the same data that are gone are deleted; entries of other data
    stay. Interrupted at any moment, the index opens, and the same call resumes.

    Raises InputError for data without anything to index, an index of another run, encoders that are not the run's,
    and while another process writes to `out`.
    """
    out, settings = Path(out), settings or BuildSettings()
    found = find_entries(data, settings.entries)
    model = AlignedModel.open(run, encoders) if run is not None else None
    with writing(out):
        if not (out / INDEX_FILE).exists():
            if model is None:
                raise InputError(f"run: needed to make a new index at {out}; give a run folder, or 'bundled'")
            create_index(out, model, raw=settings.raw)
        index = Index.open(out, encoders)
        if model is not None and model.fingerprint != index.manifest.fingerprint:
            raise InputError(f"run: the index at {out} was made by another run ({index.manifest.run}); use another out")
        report = _sync(index, found, settings, progress)
        finish(index, settings.approximate)
    return index, report


def create_index(out: Path, model: AlignedModel, *, raw: bool = True) -> None:
    """An empty index; it appears whole or not at all. Raises InputError where something else is at `out`."""
    if out.exists() and (not out.is_dir() or any(p.name not in LOCKS for p in out.iterdir())):
        raise InputError(f"out: {out} exists and holds no csaligner index; choose an empty or a new folder")
    manifest = IndexManifest(
        run=model.name,
        fingerprint=model.fingerprint,
        image=model.info("image"),
        text=model.info("text"),
        dim=model.dim,
        raw_dim=raw_dim(model.aligner) if raw else None,
    )

    def write(folder: Path) -> None:
        model.save(folder / ALIGNER)
        Items.create(folder, manifest.dim, manifest.raw_dim)
        write_manifest(folder, manifest)

    out.parent.mkdir(parents=True, exist_ok=True)
    write_folder(out, write)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the folder of an index, there or not, for writing; what a killed writer left in it is tidied up."""
    try:
        with only_writer(path, "index"):
            recover_folder(path)
            if (path / INDEX_FILE).exists():
                recover(path)
            yield
    except Exception as error:  # LanceDB raises RuntimeError and OSError of its own
        known = disk_trouble(error, path)
        if known is None:
            raise
        raise known from None


def delete(index: Index, ids: Sequence[str]) -> int:
    """Delete items by id, and measure again; returns how many there were."""
    with writing(index.path):
        index.items = Items.open(index.path)
        there = [row.id for row in index.items.by_id(ids)]
        index.items.delete(there)
        finish(index, "exact" if index.manifest.approximate is None else index.manifest.approximate.kind)
    return len(there)


def add_features(
    index: Index, modality: Modality, ids: Sequence[str], features: Tensor, texts: Sequence[str] | None = None
) -> None:
    """Add or replace items by the features (N, d_encoder) that their encoder gave; call `finish` at the end.

    texts: what they say (texts), or their captions (images).
    """
    words = texts or [""] * len(ids)
    rows = [
        Row(
            id=i,
            modality=modality,
            path="",
            text=t if modality == "text" else "",
            caption="" if modality == "text" else t,
            owner="",
            source="features",
            size=-1,
            mtime_ns=-1,
            sha256="",
        )
        for i, t in zip(ids, words, strict=True)
    ]
    known = {row.id for row in index.items.by_id(ids)} if len(index) else set()
    _put(index, modality, rows, features, new=not known)
    index.forget()


def finish(index: Index, approximate: str) -> None:
    """Tidy the table, build the approximate index that is wanted, calibrate; the index is ready to be asked."""
    index.items.tidy()
    index.forget()
    wanted = approximate
    if approximate == "auto":
        wanted = "ivf_sq" if len(index) > AUTO_ROWS else "exact"
    how = index.manifest.approximate
    if wanted == "exact":
        how = None
    elif how is None or how.kind != wanted or not how.rows / 2 <= len(index) <= how.rows * 2:
        how = build_approximate(index, wanted)
    index.manifest = replace(index.manifest, pending="", approximate=how)
    index.measure(write=True)
    write_manifest(index.path, index.manifest)
    write_checksums(index.path, index.items.files(index.path), version=index.items.version)


def _sync(index: Index, found: Found, settings: BuildSettings, progress: Progress | None) -> BuildReport:
    sources = index.manifest.sources
    sources = sources if found.source in sources else (*sources, found.source)
    index.manifest = replace(index.manifest, sources=sources, pending=found.source)
    plan = _plan(index.items.stamps(), found)
    write_manifest(index.path, index.manifest)
    index.items.restamp(plan.restamp)
    index.items.delete(plan.gone)
    done, total = 0, len(plan.embed)
    embedded: set[str] = set()
    for modality, size in A_WRITE.items():
        work = [pair for pair in plan.embed if pair[0].modality == modality]
        for start in range(0, len(work), size):
            part = work[start : start + size]
            embedded |= _embed(index, modality, part, plan, found.source, settings.workers)
            done += len(part)
            if progress:
                progress(done, total)
    added = len(embedded & plan.new)
    skipped = (*found.skipped, *plan.skipped)
    return BuildReport(
        added, len(embedded) - added, len(plan.gone), plan.unchanged + len(plan.restamp), skipped, found.notes
    )


def _plan(stamps: dict[str, Stamp], found: Found) -> _Plan:
    plan = _Plan()
    present = set()
    for entry in found.entries:
        stamp = stamps.get(entry.id)
        if stamp is not None and stamp.source != found.source:
            raise InputError(
                f"data: the id {entry.id!r} is in the index already, from {stamp.source}; "
                "index the folder above both, or give them ids of their own"
            )
        if entry.modality == "image" and not (entry.path and _exists(entry.path)):
            plan.skipped.append(f"{shown(entry.id)}: no such file")
            continue
        try:
            _plan_entry(plan, entry, stamp)
        except OSError as error:  # it went away since, or may not be read
            plan.skipped.append(f"{entry.id}: {entry.path}: {error.strerror}")
            continue
        except ImageError as error:  # a cell without a picture
            plan.skipped.append(str(error))
            continue
        present.add(entry.id)
    plan.gone += [i for i, stamp in stamps.items() if stamp.source == found.source and i not in present]
    return plan


def _plan_entry(plan: _Plan, entry: Entry, stamp: Stamp | None) -> None:
    size, mtime = _size_and_time(entry)
    words: dict[str, Any] = {"path": entry.place, "caption": entry.caption, "owner": entry.owner}
    words |= {"size": size, "mtime_ns": mtime}
    same_file = stamp is not None and entry.modality == "image" and (stamp.size, stamp.mtime_ns) == (size, mtime)
    digest = stamp.sha256 if stamp is not None and same_file else _digest(entry)
    if stamp is None or stamp.modality != entry.modality or stamp.sha256 != digest:
        plan.embed.append((entry, digest))
        if stamp is None:
            plan.new.add(entry.id)
        elif stamp.modality != entry.modality:  # it leaves one table for the other
            plan.gone.append(entry.id)
    elif any(getattr(stamp, name) != value for name, value in words.items()):
        plan.restamp[entry.id] = words
    else:
        plan.unchanged += 1


def _embed(
    index: Index, modality: Modality, part: list[tuple[Entry, str]], plan: _Plan, source: str, workers: int
) -> set[str]:
    """Encode and write one batch; returns the ids that could be."""
    prepared: list[Any] = []
    rows: list[Row] = []
    with ThreadPoolExecutor(workers) as pool:
        ready = pool.map(lambda pair: _prepare(index.model, pair[0]), part)
        for (entry, digest), value in zip(part, ready, strict=True):
            if isinstance(value, ImageError):
                plan.skipped.append(str(value))
                if entry.id not in plan.new:  # what the index knows of it is no longer so
                    index.items.delete([entry.id])
                    plan.gone.append(entry.id)
                continue
            prepared.append(value)
            path = entry.place
            words = (entry.text, entry.caption, entry.owner, source)
            rows.append(Row(entry.id, entry.modality, path, *words, *_size_and_time(entry), digest))
    if rows:
        features = index.model.encode_prepared(modality, prepared)
        _put(index, modality, rows, features, new=all(row.id in plan.new for row in rows))
    return {row.id for row in rows}


def _put(index: Index, modality: Modality, rows: list[Row], features: Tensor, *, new: bool) -> None:
    features = features.float()
    aligned = index.model.align(modality, features)
    raw = raw_vectors(index.model.aligner, modality, features) if index.manifest.raw_dim is not None else None
    index.items.put(modality, rows, aligned, raw, new=new)


def _prepare(model: AlignedModel, entry: Entry) -> Any:
    """What the encoder takes of an entry, or the ImageError that says why there is none."""
    try:
        return model.prepare(entry.modality, entry.text if entry.modality == "text" else entry.path)
    except ImageError as error:
        return error


def _exists(source: ImageSource) -> bool:
    path = file_of(source)
    return path.is_dir() if isinstance(source, SavedCell) else is_file(path)


def _size_and_time(entry: Entry) -> tuple[int, int]:
    if entry.modality == "text" or entry.path is None:
        return -1, -1
    try:
        stat = file_of(entry.path).stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def _digest(entry: Entry) -> str:
    if entry.modality == "text" or entry.path is None:
        return hashlib.sha256(entry.text.encode("utf-8", "surrogatepass")).hexdigest()
    if isinstance(entry.path, Path):
        return sha256_of(entry.path)
    return hashlib.sha256(entry.path.read()).hexdigest()
