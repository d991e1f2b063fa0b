"""Quickstart: index images and texts in one call; trains an aligner if there are enough captions."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner, align
from csaligner.adapters.class_names import count_photos, photo_line
from csaligner.checks import InputError
from csaligner.config import TrainConfig
from csaligner.datasets.caption_files import table_columns
from csaligner.datasets.clean import clean_items
from csaligner.datasets.documents import INDEX_FILE, Entry, EntrySettings, Found, find_entries
from csaligner.datasets.formats import format_of
from csaligner.datasets.split import item_split
from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER, open_encoder
from csaligner.encoders.spec import split_name
from csaligner.evaluation.evaluate import evaluate
from csaligner.evaluation.held_out import METRIC, NAMES, HeldOut
from csaligner.files import recover
from csaligner.integrity import ErrorContext, read_sealed, write_sealed
from csaligner.locks import only_writer
from csaligner.pipeline import evaluate_run, train
from csaligner.progress import Step
from csaligner.selection.score import score_per_image
from csaligner.store.manifest import MANIFEST
from csaligner.store.store import Store, write_store
from csaligner.types import Encoder, Item, Modality, PairedFeatures
from csaligner.wording import count_of

from .model import BUNDLED, AlignedModel
from .run_folder import RECORD, REPORT, START, read_config, read_record
from .search.build import BuildReport, BuildSettings, SkipLines, build_index, is_of
from .search.feature_cache import FeatureCache, embed_entries
from .search.index import Index
from .search.lance_table import require_lancedb
from .urls import require_local

ENOUGH = 300  # captioned images; with fewer, training does not improve on the bundled aligner
FEW_NEW = 0.05  # fraction of images with new captions up to which the trained aligner is kept
INDEX, STORE, RUN, FEATURES, STATE = "index", "store", "run", "features", "quickstart.json"
SIDES: tuple[Modality, Modality] = ("image", "text")
OWNER = ErrorContext("quickstart", "delete the file and run the command again")

Say = Callable[[str], object]


@dataclass(frozen=True)
class QuickstartSettings:
    """encoders: names of the image and the text encoder; None: those of the existing index, else the bundled ones.
    config: of the training. entries: options of the reader. workers: number of threads that decode images."""

    encoders: tuple[str, str] | None = None
    config: TrainConfig = field(default_factory=TrainConfig)
    entries: EntrySettings = field(default_factory=EntrySettings)
    workers: int = 2


@dataclass(frozen=True)
class QuickstartResult:
    """index: the open index; run: its aligner, "bundled", a run folder or the names of encoders; scores: selection
    score (selection/score.py) on validation captions by aligner (empty if nothing was trained); held_out: the result on
    test images, None if there are none."""

    index: Index
    report: BuildReport
    run: str
    scores: Mapping[str, float]
    held_out: HeldOut | None = None


def quickstart(
    data: Path | str, out: Path, say: Say, step: Step, settings: QuickstartSettings | None = None
) -> QuickstartResult:
    """Index the images and texts of `data`, a folder, a table or another dataset, at `out`/index.

    With at least ENOUGH captioned images, an aligner is trained and compared with the bundled or no aligner on held-out
    captions; the better one is used. Without, the bundled encoders have the bundled aligner; other encoders are used
    without one and must have equal dimensions. Captions are found in .txt files and in caption files
    (datasets/caption_files.py). say: called with messages; step: begins a step of work and returns its Update.

    Every image and text is encoded once: features are kept in `out`/features. A second call resumes after an
    interruption, trains again if captions changed (or more than 5 % of the images have new ones), and updates the
    index to changes of the data.

    Raises InputError if the data does not exist or holds nothing to index, and for encoders of different dimensions
    with too few captions to train.
    """
    require_lancedb()
    settings, data = settings or QuickstartSettings(), str(data)
    entries = _entry_settings(data, settings.entries, say)
    found = find_entries(data, entries)
    images, captioned, texts = _counts(found)
    with_captions = f"{captioned:,} with captions" if captioned else "none with captions"
    say(f"found {count_of(images, 'image')} ({with_captions}) and {count_of(texts, 'text')} in {data}")
    for note in found.notes:
        say(note)
    with only_writer(out):
        if out.is_dir():
            recover(out)
        skip = SkipLines(say)
        result = _Job(data, out, say, step, replace(settings, entries=entries), skip).run(found, captioned)
    skip.finish()
    return result


@dataclass(frozen=True)
class _Job:
    """One call. All paths are below `out`, which quickstart owns."""

    data: str
    out: Path
    say: Say
    step: Step
    settings: QuickstartSettings
    skip: SkipLines

    def run(self, found: Found, captioned: int) -> QuickstartResult:
        index = self._open_index()
        encoders = self._encoders(index)
        items = _items(self.data, self.settings.entries) if captioned >= ENOUGH else []
        state = self._state(encoders)
        trains = bool(items) and self._outdated(state, items)
        if not trains and not state:
            self.say(_without_training(encoders))
        total = 3 if trains else 2
        cache = FeatureCache(self.out / FEATURES)
        for stamp in index.items.stamps().values() if index is not None else ():
            cache.expect(stamp.path, stamp.size, stamp.mtime_ns, stamp.sha256)
        step = self.step(f"1/{total} embedding")
        embed_entries(encoders, found.entries, cache, step, max(1, self.settings.workers), self.say, self.skip)
        held_out, scores = None, dict[str, float]()
        if trains:
            state, held_out, scores = self._train(items, found.entries, encoders, cache)
            write_sealed(self.out / STATE, state)
        model = self._model(state, encoders)
        info, images = encoders["image"].info, [entry for entry in found.entries if entry.modality == "image"]
        seen = [features for entry in images if (features := cache.find(info, entry)) is not None]
        if seen and (photos := count_photos(model.aligner.image_adapter, torch.stack(seen))):
            self.say(photo_line(photos, len(seen)))
        index, report = self._index(index, model, cache, f"{total}/{total} indexing")
        return QuickstartResult(index, report, index.manifest.run, scores, held_out)

    def _train(
        self,
        items: Sequence[Item],
        entries: Iterable[Entry],
        encoders: Mapping[Modality, Encoder],
        cache: FeatureCache,
    ) -> tuple[dict[str, Any], HeldOut | None, dict[str, float]]:
        """Train, and choose the aligner with the best score on validation captions."""
        store = self._write_store(items, entries, encoders, cache)
        run, config = self.out / RUN, self.settings.config
        if not _is_run_of(run, store, config):
            _remove(run, RECORD)
        counts = {split: count for split, (count, _) in store.counts.items()}
        self.say(
            f"training an aligner on {counts['train']:,} of {count_of(sum(counts.values()), 'captioned image')}; the "
            "others are held out to choose and to measure"
        )
        made = train(store, config, run, self.step("2/3 training"))
        candidates = {"trained": made.model.eval()} | {name: m.aligner for name, m in _untrained(encoders).items()}
        scores: dict[str, float] = {}
        if "val" in store.counts:
            val = store.features("val")
            scores = {name: float(score_per_image(align(m, val)).mean()) for name, m in candidates.items()}
        best = max(scores, key=lambda name: scores[name], default="trained")
        held_out = self._report(store, candidates, best)
        rejected = made.selection is not None and made.selection.rejected
        held_out = _named(held_out, best, rejected=rejected)
        if made.selection is not None:
            self.say(made.selection.line)
        if len(scores) > 1:
            name = NAMES["untrained" if rejected and best == "trained" else best]
            self.say(f"using the {name}, the best on {count_of(counts['val'], 'other held-out image')}")
        if held_out is not None:
            for line in (*held_out.lines, f"report: {run / REPORT}"):
                self.say(line)
        return {"format_version": 1, "aligner": best, "encoders": _fingerprints(encoders)}, held_out, scores

    def _report(self, store: Store, candidates: Mapping[str, Aligner], best: str) -> HeldOut | None:
        """Evaluate the run on the test split; returns the result of the chosen aligner beside the others, None without
        test images."""
        if "test" not in store.counts:
            return None
        results = {result.name: result.metrics for result in evaluate_run(self.out / RUN, "test", store)}
        test = store.features("test")
        found = {"untrained": results[START][METRIC]}
        found |= {name: evaluate(align(m, test), intervals=False).metrics[METRIC] for name, m in candidates.items()}
        return HeldOut(len(test.image), found.pop(best), found, used=best, part="test")

    def _write_store(
        self,
        items: Sequence[Item],
        entries: Iterable[Entry],
        encoders: Mapping[Modality, Encoder],
        cache: FeatureCache,
    ) -> Store:
        """Write the features of the captioned images as a store, unless the same one is there."""
        pairs, splits = _paired(items, entries, encoders, cache)
        infos = encoders["image"].info, encoders["text"].info
        path, made = self.out / STORE, self.out / f"{STORE}.new"
        _remove(made, MANIFEST)
        paths = {e.id: e.path for e in entries if e.modality == "image" and isinstance(e.path, Path)}
        new = write_store(made, pairs, infos, splits=splits, image_paths=paths, dataset=Path(self.data).resolve().name)
        if _sha256(path) == new.sha256:
            _remove(made, MANIFEST)
        else:
            _remove(path, MANIFEST)
            os.replace(made, path)
        return Store.open(path)

    def _outdated(self, state: Mapping[str, Any], items: Sequence[Item]) -> bool:
        """Whether an aligner must be trained: there is none, or captions have changed."""
        if not state:
            return True
        before, now = _captions_of(self.out / STORE), {item.image_id: item.captions for item in items}
        if before is None or any(before[i] != now[i] for i in before.keys() & now.keys()):
            self.say("captions have changed: training again")
            return True
        new = len(now.keys() ^ before.keys())
        if new > FEW_NEW * len(before):
            self.say(f"the captions of {count_of(new, 'image')} are new or gone: training again")
            return True
        more = f" ({count_of(new, 'captioned image')} added or removed since training)" if new else ""
        name = NAMES.get(state["aligner"], state["aligner"])
        self.say(f"using the {name} of the last call{more}")
        return False

    def _model(self, state: Mapping[str, Any], encoders: Mapping[Modality, Encoder]) -> AlignedModel:
        if state.get("aligner") == "trained":
            return AlignedModel.open(str(self.out / RUN), encoders.values())
        return next(iter(_untrained(encoders).values()))

    def _index(
        self, index: Index | None, model: AlignedModel, cache: FeatureCache, title: str
    ) -> tuple[Index, BuildReport]:
        """Update the index, or write it again from the cached features if its aligner is another one."""
        path, made = self.out / INDEX, self.out / f"{INDEX}.new"
        encoders = [model.encoder(side) for side in SIDES]
        workers = max(1, self.settings.workers)
        settings = BuildSettings(self.settings.entries, workers=workers, cache=cache, skip=self.skip)
        build = partial(build_index, self.data, encoders=encoders, settings=settings)
        if index is None or is_of(index.manifest, model):
            return build(path, model, progress=self.step(title))
        _remove(made, INDEX_FILE)
        _, report = build(made, model, progress=self.step(title))
        _remove(path, INDEX_FILE)
        os.replace(made, path)
        return Index.open(path, encoders, trust=True), report

    def _open_index(self) -> Index | None:
        path = self.out / INDEX
        return Index.open(path) if (path / INDEX_FILE).is_file() else None

    def _encoders(self, index: Index | None) -> dict[Modality, Encoder]:
        """Open the encoders of the settings, else those of the index, else the bundled ones."""
        names = self.settings.encoders
        if names is None and index is not None:
            names = (index.manifest.image.id, index.manifest.text.id)
        image, text = names or (IMAGE_ENCODER, TEXT_ENCODER)
        return {"image": open_encoder(image, "image"), "text": open_encoder(text, "text")}

    def _state(self, encoders: Mapping[Modality, Encoder]) -> dict[str, Any]:
        """Return what the last training with these encoders chose, {} if nothing was trained."""
        path = self.out / STATE
        state = read_sealed(path, OWNER, dict, version=1) if path.is_file() else {}
        return state if state.get("encoders") == _fingerprints(encoders) else {}


def _named(held_out: HeldOut | None, best: str, *, rejected: bool) -> HeldOut | None:
    """Name the result of a run whose training was rejected after its untrained alignment, and list it once."""
    if held_out is None or not rejected:
        return held_out
    used = "untrained" if best == "trained" else best
    others = {name: value for name, value in held_out.others.items() if name not in {"trained", used}}
    return replace(held_out, others=others, used=used)


def _untrained(encoders: Mapping[Modality, Encoder]) -> dict[str, AlignedModel]:
    """Return the model to use without training, by its name: the bundled aligner for the bundled encoders, or no
    aligner for the two towers of one model. Empty for other encoders."""
    image, text = (encoders[side].info for side in SIDES)
    if (image.id, text.id) == (IMAGE_ENCODER, TEXT_ENCODER):
        return {BUNDLED: AlignedModel.open(BUNDLED, encoders.values())}
    if split_name(image.id)[0] == split_name(text.id)[0] and image.dim == text.dim:
        return {"encoders": AlignedModel.of_encoders(*encoders.values(), name=split_name(image.id)[0])}
    return {}


def _without_training(encoders: Mapping[Modality, Encoder]) -> str:
    """Return which aligner is used without training. Raises InputError if there is none for these encoders."""
    why = f"training an aligner requires at least {ENOUGH} captioned images"
    names = [encoders[side].info.id for side in SIDES]
    if not (models := _untrained(encoders)):
        raise InputError(f"encoders: {' and '.join(names)} share no space, and {why}; give one model with two towers")
    if BUNDLED in models:
        return f"using the bundled aligner ({why})"
    return f"using the embeddings of {next(iter(models.values())).name} with calibrated scores ({why})"


def _fingerprints(encoders: Mapping[Modality, Encoder]) -> list[str]:
    return [encoders[side].info.fingerprint for side in SIDES]


def _entry_settings(data: str, entries: EntrySettings, say: Say) -> EntrySettings:
    """Return the options of the reader; the columns of a table are found unless they are given."""
    require_local("data", data)
    if not (path := Path(data)).exists():
        raise InputError(f"data: no such file or folder: {data}")
    given = entries.image_key or entries.text_key or entries.data_format
    if path.is_dir() or given or format_of(path) != "table":
        return entries
    try:
        columns = table_columns(path, entries.image_root)
    except InputError:  # a table with images inside, or of texts alone
        return entries
    say(f"columns of {path.name}: images in {columns.image!r}, captions in {columns.caption!r}")
    return replace(entries, image_key=columns.image, text_key=columns.caption)


def _items(data: str, entries: EntrySettings) -> list[Item]:
    """Return the items with captions, [] if there are none."""
    try:
        return [item for item in clean_items(entries.open(data)).items if item.captions]
    except InputError:
        return []


def _paired(
    items: Sequence[Item], entries: Iterable[Entry], encoders: Mapping[Modality, Encoder], cache: FeatureCache
) -> tuple[PairedFeatures, dict[str, Any]]:
    """Return the cached features of the captioned images that could be read, and their splits."""
    files = {entry.id: entry for entry in entries if entry.modality == "image"}
    images, texts, owners = list[Tensor](), list[Tensor](), list[int]()
    ids, captions = list[str](), list[str]()
    splits: dict[str, Any] = {}
    for item in items:
        entry = files.get(item.image_id)
        image = cache.find(encoders["image"].info, entry) if entry is not None else None
        found = [cache.find(encoders["text"].info, Entry("", "text", text=caption)) for caption in item.captions]
        known = [feature for feature in found if feature is not None]
        if image is None or len(known) < len(found):
            continue
        owners += [len(ids)] * len(found)
        captions += item.captions
        texts += known
        images.append(image)
        ids.append(item.image_id)
        splits[item.image_id] = item_split(item)
    owner = torch.tensor(owners, dtype=torch.int64)
    return PairedFeatures(torch.stack(images), torch.stack(texts), owner, tuple(ids), tuple(captions)), splits


def _captions_of(store: Path) -> dict[str, tuple[str, ...]] | None:
    """Return the captions of a store by image id; None if there is no finished store."""
    if _sha256(store) is None:
        return None
    pairs = Store.open(store).features()
    found: dict[str, tuple[str, ...]] = {}
    for row, caption in zip(pairs.text_to_image.tolist(), pairs.captions or (), strict=True):
        found[pairs.image_ids[row]] = (*found.get(pairs.image_ids[row], ()), caption)
    return found


def _sha256(store: Path) -> str | None:
    try:
        return Store.open(store).sha256
    except InputError:
        return None


def _is_run_of(run: Path, store: Store, config: TrainConfig) -> bool:
    """Whether a folder holds a run, finished or not, with this store and these settings."""
    try:
        return read_record(run)["store_sha256"] == store.sha256 and read_config(run) == config
    except InputError:
        return False


def _remove(folder: Path, mark: str) -> None:
    """Remove a folder that quickstart made. Raises InputError if it holds anything else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise InputError(f"out: {folder} was not made by quickstart; choose another out")
    shutil.rmtree(folder, ignore_errors=True)


def _counts(found: Found) -> tuple[int, int, int]:
    images = sum(entry.modality == "image" for entry in found.entries)
    captioned = sum(entry.modality == "image" and bool(entry.caption) for entry in found.entries)
    return images, captioned, len(found.entries) - images
