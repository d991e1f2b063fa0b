"""From a folder of pictures to a search in one call: look, train if it pays, index."""

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

ENOUGH = 300  # captioned pictures; with fewer, nothing of one's own is learnt that the shipped aligner does not know
PICTURES_A_SECOND, TEXTS_A_SECOND, STEPS_A_SECOND = 20.0, 150.0, 4.0  # of the bundled encoders on one slow core
LOADING = 10.0  # seconds, of the encoders
INDEX, STORE, RUN = "index", "store", "run"

Say = Callable[[str], object]


@dataclass(frozen=True)
class QuickstartResult:
    """index: ready to be asked; run: what made it, "bundled" or a run folder; scores: mean of recall@10 and mixed
    recall@10 on held-out captions of the user, by the name of the aligner (empty where nothing was trained)."""

    index: Index
    report: BuildReport
    run: str
    scores: dict[str, float]


def quickstart(
    folder: Path, out: Path, say: Say, update: Update, *, config: TrainConfig | None = None, workers: int = 2
) -> QuickstartResult:
    """Index the pictures and texts of `folder` at `out`/index.

    With ENOUGH captioned pictures an aligner is trained on them and compared with the shipped one on captions that
    neither saw; the better one is taken. say: gets a line before each step, with how long it will take.
    A second call goes on where the first one stopped, and takes up what changed in the folder.

    Raises InputError for a folder that is not there or holds nothing to index.
    """
    if not folder.is_dir():
        raise InputError(f"folder: no such folder: {folder}")
    found = find_entries(str(folder))
    pictures, captioned, texts = _counts(found)
    say(f"found {pictures} pictures ({captioned} with captions) and {texts} texts in {folder}")
    index_folder = out / INDEX
    run, scores = BUNDLED, dict[str, float]()
    if (index_folder / "index.json").is_file():
        run = Index.open(index_folder).manifest.run
        say("an index is there already: only what changed is read again")
    elif captioned >= ENOUGH:
        run, scores = _train(folder, out, captioned, texts, (say, update), config or TrainConfig(), workers)
    else:
        say(f"aligner: the one in the package (training one of your own takes {ENOUGH} captioned pictures or more)")
    say(f"indexing: {_about(LOADING + pictures / PICTURES_A_SECOND + texts / TEXTS_A_SECOND)}")
    started = time.monotonic()
    index, report = build_index(str(folder), index_folder, run, progress=update)
    say(f"indexed in {time.monotonic() - started:.0f} s: {report.added} new, {report.unchanged} unchanged")
    if index.bias.get("aligned"):
        bias = index.bias["aligned"]
        say(f"modality_bias@10: text queries {bias['text']:+.3f}, picture queries {bias['image']:+.3f} (0: none)")
    return QuickstartResult(index, report, run, scores)


def _train(
    folder: Path, out: Path, captioned: int, texts: int, tell: tuple[Say, Update], config: TrainConfig, workers: int
) -> tuple[str, dict[str, float]]:
    say, update = tell
    say(f"reading pictures and captions: {_about(captioned / PICTURES_A_SECOND + texts / TEXTS_A_SECOND)}")
    store = embed_dataset(
        str(folder), out / STORE, settings=ExtractSettings(workers=workers, max_bad=1.0), progress=update
    )
    steps = config.epochs * math.ceil(0.8 * captioned / config.batch_size)
    say(f"training an aligner on them: {_about(steps / STEPS_A_SECOND)}")
    run = train(store, config, out / RUN, lambda step, total, values: update(step, total))
    held_out = store.features("val")
    shipped = Aligner.load(ASSET)
    fits = (shipped.config.image_encoder, shipped.config.text_encoder) == (
        store.image_fingerprint,
        store.text_fingerprint,
    )
    scores = {"trained": validate(run.model.eval(), held_out)["score"]}
    if fits:
        scores[BUNDLED] = validate(shipped, held_out)["score"]
    best = max(scores, key=lambda name: scores[name])
    words = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    say(f"recall@10 on {len(held_out.text)} captions held out: {words}; taking the {best} one")
    return (BUNDLED if best == BUNDLED else str(out / RUN)), scores


def _counts(found: Found) -> tuple[int, int, int]:
    pictures = sum(entry.modality == "image" for entry in found.entries)
    captioned = sum(entry.modality == "image" and bool(entry.caption) for entry in found.entries)
    return pictures, captioned, len(found.entries) - pictures


def _about(seconds: float) -> str:
    if seconds < 60:
        return f"about {max(5, math.ceil(seconds / 5) * 5)} seconds"
    return f"about {math.ceil(seconds / 60)} minutes"
