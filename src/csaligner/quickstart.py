"""Quickstart: index a folder of images and texts in one call; trains an aligner if there are enough captions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig
from csaligner.datasets.documents import Found, find_entries
from csaligner.pipeline import embed_dataset, train, validate
from csaligner.progress import Update
from csaligner.store.embed import ExtractSettings

from .model import ASSET, BUNDLED
from .search.build import BuildReport, build_index
from .search.index import Index
from .search.lance_table import require_lancedb

ENOUGH = 300  # captioned images; with fewer, training does not improve on the bundled aligner
IMAGES_A_SECOND, TEXTS_A_SECOND, STEPS_A_SECOND = 20.0, 150.0, 4.0  # of the bundled encoders on one slow core
LOADING = 10.0  # seconds, of the encoders
INDEX, STORE, RUN = "index", "store", "run"

Say = Callable[[str], object]


@dataclass(frozen=True)
class QuickstartResult:
    """index: the open index; run: its aligner, "bundled" or a run folder; scores: mean of recall@10 and mixed recall@10
    on held-out captions by aligner, "trained" and "bundled" (empty if nothing was trained)."""

    index: Index
    report: BuildReport
    run: str
    scores: dict[str, float]


def quickstart(
    folder: Path, out: Path, say: Say, update: Update, *, config: TrainConfig | None = None, workers: int = 2
) -> QuickstartResult:
    """Index the images and texts of `folder` at `out`/index.

    With at least ENOUGH captioned images, an aligner is trained and compared with the bundled one on held-out
    captions; the better one is used. say: called with a message before each step, with the expected time. A second
    call resumes, and updates the index to changes in the folder.

    Raises InputError if the folder does not exist or has nothing to index.
    """
    if not folder.is_dir():
        raise InputError(f"folder: no such folder: {folder}")
    require_lancedb()
    found = find_entries(str(folder))
    images, captioned, texts = _counts(found)
    say(f"found {images} images ({captioned} with captions) and {texts} texts in {folder}")
    index_folder = out / INDEX
    run, scores = BUNDLED, dict[str, float]()
    if (index_folder / "index.json").is_file():
        run = Index.open(index_folder).manifest.run
        say("updating the existing index: only what changed is embedded")
    elif captioned >= ENOUGH:
        run, scores = _train(folder, out, captioned, texts, (say, update), config or TrainConfig(), workers)
    else:
        say(f"using the bundled aligner (training an aligner requires at least {ENOUGH} captioned images)")
    say(f"indexing: {_about(LOADING + images / IMAGES_A_SECOND + texts / TEXTS_A_SECOND)}")
    started = time.monotonic()
    index, report = build_index(str(folder), index_folder, run, progress=update)
    say(f"indexed in {time.monotonic() - started:.0f} s: {report.added} new, {report.unchanged} unchanged")
    if index.bias.get("aligned"):
        bias = index.bias["aligned"]
        say(f"modality_bias@10: text queries {bias['text']:+.3f}, image queries {bias['image']:+.3f} (0 = balanced)")
    return QuickstartResult(index, report, run, scores)


def _train(
    folder: Path, out: Path, captioned: int, texts: int, output: tuple[Say, Update], config: TrainConfig, workers: int
) -> tuple[str, dict[str, float]]:
    say, update = output
    say(f"embedding images and captions: {_about(captioned / IMAGES_A_SECOND + texts / TEXTS_A_SECOND)}")
    store = embed_dataset(
        str(folder), out / STORE, settings=ExtractSettings(workers=workers, max_bad=1.0), progress=update
    )
    steps = config.epochs * math.ceil(0.8 * captioned / config.batch_size)
    say(f"training an aligner: {_about(steps / STEPS_A_SECOND)}")
    run = train(store, config, out / RUN, lambda step, total, values: update(step, total))
    held_out = store.features("val")
    bundled = Aligner.load(ASSET)
    fits = (bundled.config.image_encoder, bundled.config.text_encoder) == (
        store.image_fingerprint,
        store.text_fingerprint,
    )
    scores = {"trained": validate(run.model.eval(), held_out)["score"]}
    if fits:
        scores[BUNDLED] = validate(bundled, held_out)["score"]
    best = max(scores, key=lambda name: scores[name])
    words = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    say(f"recall@10 on {len(held_out.text)} held-out captions: {words}; using the {best} aligner")
    return (BUNDLED if best == BUNDLED else str(out / RUN)), scores


def _counts(found: Found) -> tuple[int, int, int]:
    images = sum(entry.modality == "image" for entry in found.entries)
    captioned = sum(entry.modality == "image" and bool(entry.caption) for entry in found.entries)
    return images, captioned, len(found.entries) - images


def _about(seconds: float) -> str:
    if seconds < 60:
        return f"about {max(5, math.ceil(seconds / 5) * 5)} seconds"
    return f"about {math.ceil(seconds / 60)} minutes"
