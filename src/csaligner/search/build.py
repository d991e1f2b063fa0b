"""Building and updating an index; only new and changed entries are embedded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from csaligner.adapters.class_names import photo_line
from csaligner.checks import InputError, check_choice
from csaligner.datasets.documents import INDEX_FILE, Entry, EntrySettings, Found, find_entries
from csaligner.datasets.images.hf_cell import SavedCell
from csaligner.datasets.images.load import ImageError, is_file
from csaligner.datasets.images.source import file_of
from csaligner.datasets.text_files import shown
from csaligner.files import disk_trouble, recover, recover_folder, write_folder
from csaligner.integrity import write_checksums
from csaligner.locks import NAMES as LOCKS
from csaligner.locks import only_writer
from csaligner.model import AlignedModel
from csaligner.types import Dataset, Encoder, ImageSource, Modality

from .approximate import build_approximate
from .encode_entries import EncodedPart, Encoding, Pair, encode_part, put_features, write_part
from .feature_cache import FeatureCache, alternating, digest_of, size_and_time
from .fused import AUTO, Fuse, check_fuse, check_same, choose_weight, fuse_entries, image_digest, kind_of, with_text
from .index import ALIGNER, Index
from .lance_table import INDEX_TYPES, ItemKind, Items, Row, Stamp
from .manifest import IndexManifest, write_manifest
from .memory_ivf import KIND, files_of_lists, has_faiss, remove_lists
from .ray_runner import RayRunner, encode_on_ray
from .trust import mark_of
from .unanswered import Change, Unanswered
from .vector_spaces import raw_dim

# entries per write: at most this many are lost on a kill
A_WRITE: Mapping[ItemKind, int] = {"image": 64, "text": 256, "fused": 64}
AUTO_ROWS = 200_000  # above this, `auto` builds an approximate index
Progress = Callable[[int, int], object]  # entries done, total


@dataclass(frozen=True)
class BuildSettings:
    """entries: which entries of the data to index. approximate: exact, auto (faiss above 200,000 rows, ivf_sq without
    faiss), faiss, ivf_sq, ivf_pq, ivf_rq or hnsw. workers: threads for image decoding. raw: also keep raw vectors in
    half precision, for comparison. cache: features that need not be encoded again. trust: see Index.open. skip: called
    with the reason for each skipped item, when it is found. fuse: make one item of each image and its captions, with
    this weight of the image or auto (search/fused.py); raw vectors are not kept then. None: separate items, or as in an
    existing index. ray: encode on a Ray cluster, None: in this process; the index is the same."""

    entries: EntrySettings = field(default_factory=EntrySettings)
    approximate: str = "auto"
    workers: int = 2
    raw: bool = True
    cache: FeatureCache | None = None
    trust: bool = False
    skip: Callable[[str], object] = lambda reason: None
    fuse: Fuse = None
    ray: RayRunner | None = None

    def __post_init__(self) -> None:
        check_fuse(self.fuse)
        check_choice("approximate", self.approximate, ("exact", "auto", KIND, *INDEX_TYPES))
        if self.workers < 1:
            raise InputError(f"workers: got {self.workers}, wanted at least 1")


class SkipLines:
    """Call with the reason for each skipped item: reports the first `most` different ones, and counts all."""

    def __init__(self, say: Callable[[str], object], most: int = 5) -> None:
        self._say, self._most, self._seen = say, most, set[str]()

    def __call__(self, reason: str) -> None:
        if reason not in self._seen:
            self._seen.add(reason)
            if len(self._seen) <= self._most:
                self._say(f"skipped: {reason}")

    def finish(self) -> None:
        """Report the number of those that were not reported."""
        if len(self._seen) > self._most:
            self._say(f"skipped: {len(self._seen) - self._most:,} more")


@dataclass(frozen=True)
class BuildReport:
    """Numbers of entries added, updated (embedded again), deleted and unchanged; skipped: reasons, one per line;
    notes: what the reader ignored or inferred."""

    added: int
    updated: int
    deleted: int
    unchanged: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Plan:
    embed: list[tuple[Entry, str]] = field(default_factory=list)  # (entry, digest)
    restamp: dict[str, dict[str, Any]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    new: set[str] = field(default_factory=set)
    unchanged: int = 0
    skipped: list[str] = field(default_factory=list)
    photos: int = 0  # of the embedded images


def build_index(
    data: str | Dataset,
    out: Path | str,
    run: str | AlignedModel | None = None,
    *,
    encoders: Sequence[Encoder] = (),
    settings: BuildSettings | None = None,
    progress: Progress | None = None,
) -> tuple[Index, BuildReport]:
    """Build an index of `data` at `out` with the aligner of `run`, or update the index at `out`.

    data: see datasets.documents. run: an open model, or a name for AlignedModel.open; not needed if the index exists.
    encoders: instead of those recorded in the run. Entries removed from `data` are deleted; entries of other data are
    kept. Data that was moved is recognised: its earlier path no longer exists, and most of the ids it shares with
    `data` hold the same content. After an interruption the index can be opened, and the same call resumes.

    Raises InputError if there is nothing to index, the index belongs to another run, the encoders do not match the
    run, or another process writes to `out`.
    """
    out, settings = Path(out), settings or BuildSettings()
    found = find_entries(data, settings.entries)
    model = AlignedModel.open(run, encoders) if isinstance(run, str) else run
    with writing(out):
        if new := not (out / INDEX_FILE).exists():
            if model is None:
                raise InputError(f"run: required for a new index at {out}; give a run folder, 'bundled' or an encoder")
            found, weight = _weight(found, model, settings.fuse)
            create_index(out, model, raw=settings.raw, fused=weight)
        index = Index.open(out, encoders, trust=new or settings.trust)
        check_same(settings.fuse, index.manifest.fused, out)
        if model is not None and not is_of(index.manifest, model):
            raise InputError(
                f"run: the index at {out} was made with another run ({index.manifest.run}); choose another out"
            )
        before = index.items.version
        report, changed = _sync(index, found, settings, progress)
        if index.manifest.sources == (found.source,):  # every row is of this data now
            index.manifest = replace(index.manifest, mark=_mark(index.model))
        finish(index, settings.approximate, Change(before, changed))
    return index, report


def _weight(found: Found, model: AlignedModel, fuse: Fuse) -> tuple[Found, float | None]:
    """Return the weight for a new index, and the data with a note on how it was chosen."""
    if fuse != AUTO:
        return found, None if fuse is None else float(fuse)
    choice = choose_weight(model, fuse_entries(found.entries))
    return replace(found, notes=(*found.notes, choice.note)), choice.image_weight


def _mark(model: AlignedModel) -> str:
    return mark_of(model.fingerprint, model.info("image"), model.info("text"))


def is_of(manifest: IndexManifest, model: AlignedModel) -> bool:
    """Whether an index was made with this model: the same aligner and, where the model knows them, encoders."""
    known = {"image": manifest.image, "text": manifest.text}
    same = all(info.fingerprint == known[side].fingerprint for side, info in model.infos.items())
    return same and model.fingerprint == manifest.fingerprint


def create_index(out: Path, model: AlignedModel, *, raw: bool = True, fused: float | None = None) -> None:
    """Create an empty index; the write is atomic. fused: weight of the image in fused items, None: without them.
    Raises InputError if `out` contains anything else."""
    if out.exists() and (not out.is_dir() or any(p.name not in LOCKS for p in out.iterdir())):
        made = out / "index"  # of a quickstart
        fix = f"give its index, {made}" if (made / INDEX_FILE).is_file() else "choose an empty or a new folder"
        raise InputError(f"out: {out} exists and is not a csaligner index; {fix}")
    manifest = IndexManifest(
        run=model.name,
        fingerprint=model.fingerprint,
        image=model.info("image"),
        text=model.info("text"),
        dim=model.dim,
        raw_dim=raw_dim(model.aligner) if raw and fused is None else None,
        mark=_mark(model),
        fused=fused,
    )

    def write(folder: Path) -> None:
        model.save(folder / ALIGNER)
        Items.create(folder, manifest.dim, manifest.raw_dim, fused=fused is not None)
        write_manifest(folder, manifest)

    out.parent.mkdir(parents=True, exist_ok=True)
    write_folder(out, write)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Lock an index folder for writing, existing or not, and clean up after an interrupted writer."""
    try:
        with only_writer(path, "index"):
            recover_folder(path)
            if (path / INDEX_FILE).exists():
                recover(path)
            yield
    except Exception as error:  # LanceDB raises its own RuntimeError and OSError
        known = disk_trouble(error, path)
        if known is None:
            raise
        raise known from None


def delete(index: Index, ids: Sequence[str]) -> int:
    """Delete items by id and recalibrate; returns the number deleted."""
    with writing(index.path):
        index.items = Items.open(index.path)
        before = index.items.version
        present = [row.id for row in index.items.by_id(ids)]
        index.items.delete(present)
        how = "exact" if index.manifest.approximate is None else index.manifest.approximate.kind
        finish(index, how, Change(before, len(present)))
    return len(present)


def add_features(
    index: Index, modality: Modality, ids: Sequence[str], features: Tensor, texts: Sequence[str] | None = None
) -> None:
    """Add or replace items by their encoder features (N, d_encoder); call `finish` after the last call.

    texts: the texts, or captions of the images.
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
    put_features(index, modality, rows, features, new=not known)
    index.forget()


def finish(index: Index, approximate: str, change: Change | None = None) -> None:
    """Compact the tables, build the approximate index if requested, and calibrate: completes an update. change: what
    it did, None: not known."""
    index.items.tidy()
    index.forget()
    many = KIND if has_faiss() else "ivf_sq"
    automatic = many if len(index) > AUTO_ROWS else "exact"
    wanted = automatic if approximate == "auto" else approximate
    how = index.manifest.approximate
    if wanted == "exact":
        how = None
    elif how is None or how.kind != wanted or wanted == KIND or not how.rows / 2 <= len(index) <= how.rows * 2:
        how = build_approximate(index, wanted)
    index.manifest = replace(index.manifest, pending="", approximate=how)
    index.measure(write=True)
    Unanswered(index).write(change)
    index.items.write_snapshot(keep=how is None or how.kind == KIND)
    if how is None or how.kind != KIND:
        remove_lists(index.path)
    write_manifest(index.path, index.manifest)
    write_checksums(
        index.path, [*index.items.files(index.path), *files_of_lists(index.path)], version=index.items.version
    )


def _sync(index: Index, found: Found, settings: BuildSettings, progress: Progress | None) -> tuple[BuildReport, int]:
    """Bring the tables up to date; returns the report and the number of items that changed."""
    stamps = index.items.stamps()
    of_file = settings.cache.digest if settings.cache else digest_of
    read = lambda entry: with_text(entry, of_file(entry))  # noqa: E731
    if index.manifest.fused is not None:
        found = replace(found, entries=fuse_entries(found.entries))
    own = {found.source, *_moved(stamps, found, read)}
    sources = tuple(source for source in index.manifest.sources if source not in own)
    index.manifest = replace(index.manifest, sources=(*sources, found.source), pending=found.source)
    plan = _plan(stamps, found, own, read)
    for reason in (*found.skipped, *plan.skipped):
        settings.skip(reason)
    write_manifest(index.path, index.manifest)
    index.items.restamp(plan.restamp)
    index.items.delete(plan.gone)
    done, total = 0, len(plan.embed)
    embedded: set[str] = set()
    how = Encoding(found.source, settings.workers, settings.cache, settings.skip)
    work = {kind: [pair for pair in plan.embed if kind_of(pair[0]) == kind] for kind in A_WRITE}
    parts = (part for _, part in alternating(work, A_WRITE))
    with closing(_encoded(index, parts, how, settings.ray if total else None)) as stream:
        for part, rows in stream:
            encoded = write_part(index, rows, plan.new, how)
            embedded |= encoded.ids
            plan.skipped += encoded.skipped
            plan.gone += encoded.gone
            plan.photos += encoded.photos
            done += len(part)
            if progress:
                progress(done, total)
    added = len(embedded & plan.new)
    skipped = (*found.skipped, *plan.skipped)
    images = sum(entry.modality == "image" for entry, _ in plan.embed)
    notes = (*found.notes, photo_line(plan.photos, images)) if plan.photos else found.notes
    unchanged, changed = plan.unchanged + len(plan.restamp), len(plan.embed) + len(plan.restamp) + len(plan.gone)
    return BuildReport(added, len(embedded) - added, len(plan.gone), unchanged, skipped, notes), changed


def _encoded(
    index: Index, parts: Iterator[Sequence[Pair]], how: Encoding, ray: RayRunner | None
) -> Generator[tuple[Sequence[Pair], EncodedPart], None, None]:
    """Yield every part with its rows, encoded in this process or on a Ray cluster."""
    if ray is not None:
        with closing(encode_on_ray(index, parts, how, ray)) as stream:
            yield from stream
        return
    for part in parts:
        yield part, encode_part(index.model, part, how)


def _plan(stamps: dict[str, Stamp], found: Found, own: set[str], digest_of: Callable[[Entry], str]) -> _Plan:
    """own: sources whose entries are those of the data."""
    plan = _Plan()
    present = set()
    for entry in found.entries:
        stamp = stamps.get(entry.id)
        if stamp is not None and stamp.source not in own:
            raise InputError(
                f"data: the id {entry.id!r} is already in the index, from {stamp.source}; "
                "index their common parent folder, or use distinct ids"
            )
        if entry.modality == "image" and not (entry.path and _exists(entry.path)):
            plan.skipped.append(f"{shown(entry.id)}: no such file")
            continue
        try:
            _plan_entry(plan, entry, stamp, found.source, digest_of)
        except OSError as error:  # deleted since, or not readable
            plan.skipped.append(f"{entry.id}: {entry.path}: {error.strerror}")
            continue
        except ImageError as error:  # a cell without an image
            plan.skipped.append(str(error))
            continue
        present.add(entry.id)
    plan.gone += [i for i, stamp in stamps.items() if stamp.source in own and i not in present]
    return plan


def _moved(stamps: Mapping[str, Stamp], found: Found, digest_of: Callable[[Entry], str]) -> tuple[str, ...]:
    """Return the sources that no longer exist and of whose ids in `found` more than half hold the same content."""
    same, shared = Counter[str](), Counter[str]()
    exists: dict[str, bool] = {}
    for entry in found.entries:
        stamp = stamps.get(entry.id)
        if stamp is None or stamp.source == found.source:
            continue
        if exists.setdefault(stamp.source, not os.path.isabs(stamp.source) or os.path.exists(stamp.source)):
            continue
        shared[stamp.source] += 1
        with suppress(OSError, ImageError):
            same[stamp.source] += stamp.modality == entry.modality and stamp.sha256 == digest_of(entry)
    return tuple(source for source, count in shared.items() if 2 * same[source] > count)


def _plan_entry(plan: _Plan, entry: Entry, stamp: Stamp | None, source: str, digest_of: Callable[[Entry], str]) -> None:
    size, mtime = size_and_time(entry)
    words: dict[str, Any] = {"path": entry.place, "caption": entry.caption, "owner": entry.owner, "source": source}
    words |= {"size": size, "mtime_ns": mtime}
    same_file = stamp is not None and entry.modality == "image" and (stamp.size, stamp.mtime_ns) == (size, mtime)
    digest = with_text(entry, image_digest(stamp.sha256)) if stamp is not None and same_file else digest_of(entry)
    kind = kind_of(entry)
    if stamp is None or stamp.kind != kind or stamp.sha256 != digest:
        plan.embed.append((entry, digest))
        if stamp is None:
            plan.new.add(entry.id)
        elif stamp.kind != kind:  # moves to another table
            plan.gone.append(entry.id)
    elif any(getattr(stamp, name) != value for name, value in words.items()):
        plan.restamp[entry.id] = words
    else:
        plan.unchanged += 1


def _exists(source: ImageSource) -> bool:
    path = file_of(source)
    return path.is_dir() if isinstance(source, SavedCell) else is_file(path)
