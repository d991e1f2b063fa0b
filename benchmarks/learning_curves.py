"""Learning curves: where each objective helps, where it hurts, and by how much.

    python benchmarks/learning_curves.py --shared PATH --stores DIR [--only CURVE ...]

Resumes: finished cells are kept in --work. Writes benchmarks/results/learning_curves.json and the figures
docs/learning_curves.svg and docs/collapse.svg. One core, about half an hour.

PATH/data: {clip_coco_500,convirt_500,videoclip_100}.npy, (2, N, d) paired features; split s: a permutation by
RandomState(SEED + s), the first rows are the test pairs, the next ones train, then unpaired images and unpaired texts.
DIR: stores store-openmoji, store-tuxpaint and store-openclipart (`csaligner embed --data NAME`), with the bundled
encoders. All methods start from the untrained alignment that cross-validation chooses on the (noisy) training rows.
The weights of L2 and MMD are those that tuning chose on CLIP features (docs/comparison.md).

- pairs: number of training pairs; "pairs, 100 unpaired": with 100 further images and 100 further texts of other items.
- noise: a share of the training pairs whose texts are exchanged among each other, in percent.
- batch: images per batch, equal number of steps.
- domain: DRAWINGS training images of one collection; test images of each collection.
- three: Tux Paint's images, English and German captions (examples/three_modalities.py); mean of the three pairs.
- collapse: metrics of the test pairs during EPOCHS epochs on radiology.

Intervals: 95 %, paired: each of 1,000 resamples draws splits, and within a split test images with their captions, and
takes both methods on the same rows.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_figures import draw_collapse, draw_curves
from torch import Tensor

from csaligner.adapters import MultiAligner, fit_joint_start
from csaligner.adapters.aligner import align
from csaligner.config import AdapterConfig, TrainConfig, build_config
from csaligner.datasets import TuxPaint, clean_items
from csaligner.divergences import cauchy_schwarz_divergence
from csaligner.encoders import MiniLM
from csaligner.estimator import CSAligner
from csaligner.evaluation.bootstrap import RESAMPLES, draw_counts, percentile_interval, resampled_means, resampled_norms
from csaligner.evaluation.one_pass import search_per_query
from csaligner.files import write_json
from csaligner.losses import ModalitiesLoss
from csaligner.paired_features import pair_features, rows_of
from csaligner.run_folder import provenance
from csaligner.selection.fit import Selecting
from csaligner.store.store import Store
from csaligner.training.samplers import PairSampler
from csaligner.training.trainer import Hooks, Trainer
from csaligner.types import PairedFeatures

ROOT = Path(__file__).parents[1]
SEED, SPLITS, TEST, UNPAIRED = 500, 2, 100, 100
PAIRS = {"clip_coco_500": (50, 100, 200, 400), "convirt_500": (50, 100, 200, 400), "videoclip_100": (80,)}
MOST_UNPAIRED = 100  # pairs beside unpaired rows
NOISE, NOISY_PAIRS = (10, 20, 30, 50), 400  # 0: the cell of 400 pairs
BATCHES, STEPS = (32, 128), 40  # 400: the cell of 400 pairs
COLLECTIONS, DRAWINGS = ("openmoji", "tuxpaint", "openclipart"), 250
COURSES, EPOCHS, EVERY = 3, 80, 4
START, DEFAULTS, INFONCE, CS = "chosen start", "defaults", "InfoNCE", "InfoNCE + D_CS"
TERMS: Mapping[str, dict[str, float]] = {
    INFONCE: {"info_nce": 1.0},
    CS: {"info_nce": 1.0, "cauchy_schwarz": 1.0},
    "InfoNCE + L2": {"info_nce": 1.0, "paired_l2": 1.0},
    "InfoNCE + MMD": {"info_nce": 1.0, "mmd": 50.0},
}
METRICS = ("score", "recall", "ndcg", "gap")
CURVES = ("pairs", "noise", "batch", "domain", "three", "collapse")
Unpaired = tuple[Tensor | None, Tensor | None]
Found = dict[str, dict[str, Any]]  # method -> means and resamples


@dataclass(frozen=True)
class Cell:
    """One training set and its test sets. at: place on the axis of the curve; tests: name of the data -> test pairs;
    given: settings of every trained method; defaults: whether the default is measured."""

    curve: str
    at: float | str
    split: int
    train: PairedFeatures
    tests: Mapping[str, PairedFeatures]
    unpaired: Unpaired = (None, None)
    given: Mapping[str, Any] = field(default_factory=dict)
    defaults: bool = True


def measure(aligned: PairedFeatures, split: int) -> dict[str, Any]:
    """Return METRICS and their resampled values; the resamples of a split are the same for every method."""
    recall, mixed = search_per_query(aligned)
    n, owner = len(aligned.image), aligned.text_to_image
    counts, images = draw_counts(n, split), torch.arange(n)
    parts = {
        "recall": ((recall["image_to_text"]["recall@1"], images), (recall["text_to_image"]["recall@1"], owner)),
        "ndcg": ((mixed["mixed_ndcg@10/image_query"], images), (mixed["mixed_ndcg@10"], owner)),
    }
    means = {k: sum(float(values.double().mean()) for values, _ in both) / 2 for k, both in parts.items()}
    drawn = {k: sum(resampled_means(v.double(), of, counts) / 2 for v, of in both) for k, both in parts.items()}
    captions = torch.zeros_like(aligned.image).index_add_(0, owner, aligned.text)
    vectors = (aligned.image - captions / torch.bincount(owner, minlength=n)[:, None]).double()
    means |= {"score": (means["recall"] + means["ndcg"]) / 2, "gap": float(vectors.mean(dim=0).norm())}
    resamples = drawn | {"score": (drawn["recall"] + drawn["ndcg"]) / 2, "gap": resampled_norms(vectors, counts)}
    kept = {k: torch.as_tensor(values).numpy().round(5).tolist() for k, values in resamples.items()}
    return {"means": means, "resamples": kept}


def run_cell(cell: Cell) -> dict[str, Found]:
    """Return test name -> method -> measured values."""
    seed, train, (images, texts) = cell.split, cell.train, cell.unpaired
    start = CSAligner(epochs=0, seed=seed, verbose=False).fit_features(train, images, texts)
    like, models = start.selection_, {START: start.model}
    for method, terms in TERMS.items():
        settings = {"gate": False, "objective": {"terms": terms}, **cell.given}
        aligner = CSAligner(seed=seed, verbose=False, **settings)
        models[method] = aligner.fit_features(train, images, texts, like=like).model
    if cell.defaults:
        models[DEFAULTS] = CSAligner(seed=seed, verbose=False).fit_features(train, images, texts, like=like).model
    return {
        name: {method: measure(align(model, test), seed) for method, model in models.items()}
        for name, test in cell.tests.items()
    }


def with_noise(train: PairedFeatures, percent: int, seed: int) -> PairedFeatures:
    """Exchange the texts of `percent` of the pairs among each other; none of these keeps its text."""
    g = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train.text), generator=g)[: round(percent / 100 * len(train.text))]
    text = train.text.clone()
    text[chosen] = train.text[chosen.roll(1)]
    return PairedFeatures(train.image, text, train.text_to_image, train.image_ids)


def array_cells(shared: Path, curves: Sequence[str]) -> Iterator[Cell]:
    """Cells of the arrays: pairs, noise and batch."""
    for name, sizes in PAIRS.items():
        rows = np.load(shared / f"{name}.npy").astype(np.float32)
        for split in range(SPLITS):
            order = np.random.RandomState(SEED + split).permutation(rows.shape[1])
            held = TEST if len(order) > TEST else len(order) - sizes[-1]
            tests = {name: pair_features(*rows[:, order[:held]])}

            def pairs(n: int, rows: Any = rows, order: Any = order, held: int = held) -> PairedFeatures:
                return pair_features(*rows[:, order[held : held + n]])

            needed = [n for n in sizes if "pairs" in curves or (n == NOISY_PAIRS and {"noise", "batch"} & set(curves))]
            for n in needed:
                yield Cell("pairs", n, split, pairs(n), tests)
                if n <= MOST_UNPAIRED and len(order) > TEST:
                    images, texts = order[held + n :][:UNPAIRED], order[held + n + UNPAIRED :][:UNPAIRED]
                    more = torch.from_numpy(rows[0, images]), torch.from_numpy(rows[1, texts])
                    yield Cell(f"pairs, {UNPAIRED} unpaired", n, split, pairs(n), tests, more)
            if len(order) == TEST:
                continue
            for percent in NOISE if "noise" in curves else ():
                yield Cell("noise", percent, split, with_noise(pairs(NOISY_PAIRS), percent, split), tests)
            for batch in BATCHES if "batch" in curves else ():
                epochs = round(STEPS / -(-NOISY_PAIRS // batch))
                given = {"batch_size": batch, "epochs": epochs, "evaluate_every": epochs}
                yield Cell("batch", batch, split, pairs(NOISY_PAIRS), tests, given=given, defaults=False)


def domain_cells(stores: Path) -> Iterator[Cell]:
    """Train on one collection of drawings, test on all."""
    opened = {name: Store.open(stores / f"store-{name}") for name in COLLECTIONS}
    tests = {name: store.features("test") for name, store in opened.items()}
    for name, store in opened.items():
        train = store.features("train")
        for split in range(SPLITS):
            order = torch.randperm(len(train.image), generator=torch.Generator().manual_seed(split))
            yield Cell("domain", name, split, rows_of(train, order[:DRAWINGS].sort().values), tests, defaults=False)


def tuxpaint_rows(store: Store) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Return features and ids of images, English and German captions, as those of examples/three_modalities.py, and
    whether an id is a test item. An image without a German caption has no row there."""
    parts = [store.features(name) for name in ("train", "test")]
    names = [name for part in parts for name in part.image_ids]
    german = {item.image_id: item.captions for item in clean_items(TuxPaint("de")).items}
    captions = [german.get(name, ()) for name in names]
    rows = {
        "image": torch.cat([part.image for part in parts]),
        "english": torch.cat([part.text for part in parts]),
        "other": MiniLM().encode([text for texts in captions for text in texts]),
    }
    ids = {
        "image": torch.arange(len(names)),
        "english": torch.cat([parts[0].text_to_image, parts[1].text_to_image + len(parts[0].image)]),
        "other": torch.tensor([i for i, texts in enumerate(captions) for _ in texts]),
    }
    return rows, ids, torch.arange(len(names)) >= len(parts[0].image)


def three_modalities(split: int, store: Store) -> dict[str, Found]:
    """Return "images, English, German" -> method -> the means of METRICS over the three pairs of modalities."""
    sys.path.insert(0, str(ROOT / "examples"))
    example = importlib.import_module("three_modalities")
    rows, ids, test = tuxpaint_rows(store)
    train_rows, train_ids = example.part(rows, ids, ~test)
    everywhere = test.clone()
    for of in ids.values():
        everywhere &= torch.isin(torch.arange(len(test)), of)
    test_rows, test_ids = example.part(rows, ids, everywhere)
    starts, found = fit_joint_start(train_rows, train_ids, example.DIM), {}
    for method, weight in {START: None, INFONCE: 0.0, CS: 1.0}.items():
        torch.manual_seed(split)
        model = MultiAligner(starts, AdapterConfig(hidden=256))
        if weight is not None:
            example.train(model, ModalitiesLoss(weight=weight), train_rows, train_ids, 40)
        with torch.no_grad():
            aligned = model.eval()(test_rows)
        pairs = [
            measure(pair_features(aligned[a], aligned[b], test_ids[a].tolist(), test_ids[b].tolist()), split)
            for a, b in combinations(("image", "english", "other"), 2)
        ]
        found[method] = {
            "means": {k: float(np.mean([p["means"][k] for p in pairs])) for k in METRICS},
            "resamples": {k: np.mean([p["resamples"][k] for p in pairs], axis=0).round(5).tolist() for k in METRICS},
        }
    return {"images, English, German": found}


def collapse(rows: Any, split: int) -> dict[str, list[dict[str, float]]]:
    """Return method -> metrics of the test pairs before training and after every EVERY epochs."""
    order = np.random.RandomState(SEED + split).permutation(rows.shape[1])
    test, train = (pair_features(*rows[:, part]) for part in (order[:TEST], order[TEST:]))

    def metrics(model: Any) -> dict[str, float]:
        aligned = align(model.eval(), test)
        found: dict[str, float] = measure(aligned, split)["means"]
        return found | {"cs": float(cauchy_schwarz_divergence(aligned.image, aligned.text, bandwidth=0.5))}

    choice, curves = None, {}
    for method, terms in TERMS.items():
        given = {"objective": {"terms": terms}, "gate": False, "epochs": EPOCHS, "evaluate_every": EVERY, "seed": split}
        config = build_config(TrainConfig, given)
        selecting = Selecting(config)
        choice = choice or selecting.choose(train)
        torch.manual_seed(split)
        model = selecting.start(train, choice)
        points = [{"epoch": 0.0} | metrics(model)]
        sampler = PairSampler(train, config.batch_size, config.captions, config.seed)
        history = Trainer(model, sampler, config, hooks=Hooks(evaluate=metrics, warn=lambda line: None)).fit().history
        measured = [{k.removeprefix("val/"): v for k, v in h.items() if k.startswith("val/")} for h in history]
        points += [{"epoch": float(EVERY * (i + 1))} | m for i, m in enumerate(m for m in measured if m)]
        curves[method] = [{k: round(v, 5) for k, v in point.items()} for point in points]
    return curves


def once(path: Path, make: Callable[[], Any]) -> Any:
    """Return make(), kept as JSON in `path`."""
    if not path.is_file():
        write_json(path, make())
        print(path.stem, flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def summary(curve: str, at: float | str, data: str, splits: Sequence[Found]) -> list[dict[str, Any]]:
    """Return one record per method: means over splits, and the paired differences from InfoNCE and from the start."""
    g = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(splits), (RESAMPLES, len(splits)), generator=g)
    records = []
    for method in splits[0]:
        record: dict[str, Any] = {"curve": curve, "at": at, "data": data, "method": method}
        record |= {k: round(float(np.mean([s[method]["means"][k] for s in splits])), 5) for k in METRICS}
        for other, name in ((INFONCE, "minus InfoNCE"), (START, "minus start")):
            if method != other:
                record[name] = {k: _difference(splits, method, other, k, drawn) for k in METRICS}
        records.append(record)
    return records


def _difference(splits: Sequence[Found], one: str, two: str, key: str, drawn: Tensor) -> list[float]:
    """Value, low, high."""
    value = float(np.mean([s[one]["means"][key] - s[two]["means"][key] for s in splits]))
    changes = [np.subtract(s[one]["resamples"][key], s[two]["resamples"][key]) for s in splits]
    resamples = torch.from_numpy(np.stack(changes, axis=1))
    low, high = percentile_interval(resamples.gather(1, drawn).mean(dim=1))
    return [round(value, 5), round(low, 5), round(high, 5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/*.npy")
    parser.add_argument("--stores", type=Path, required=True, help="folder with store-openmoji and the others")
    parser.add_argument(
        "--only", nargs="+", choices=CURVES, default=CURVES, help="measure these; keep the others' records"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/learning_curves.json")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/learning_curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="training: the gap closes")  # what this measures
    options.work.mkdir(parents=True, exist_ok=True)
    data = options.shared / "data"
    cells: dict[tuple[str, float | str, str], list[Found]] = {}
    made = array_cells(data, options.only)
    for cells_of in (made, domain_cells(options.stores) if "domain" in options.only else ()):
        for cell in cells_of:
            label = next(iter(cell.tests)) if len(cell.tests) == 1 else "drawings"
            path = options.work / f"{cell.curve}-{label}-{cell.at}-{cell.split}.json"
            for name, found in once(path, partial(run_cell, cell)).items():
                cells.setdefault((cell.curve, cell.at, name), []).append(found)
                if (cell.curve, cell.at) == ("pairs", NOISY_PAIRS):
                    cells.setdefault(("noise", 0, name), []).append(found)
                    trained = {method: values for method, values in found.items() if method != DEFAULTS}
                    cells.setdefault(("batch", NOISY_PAIRS, name), []).append(trained)
    for split in range(SPLITS) if "three" in options.only else ():
        tuxpaint = Store.open(options.stores / "store-tuxpaint")
        path = options.work / f"three-{split}.json"
        for name, found in once(path, partial(three_modalities, split, tuxpaint)).items():
            cells.setdefault(("three", 3, name), []).append(found)
    order = sorted(cells, key=lambda key: (CURVES.index(_family(key[0])), key[0], key[2], key[1]))
    records = [record for key in order if _family(key[0]) in options.only for record in summary(*key, cells[key])]
    courses = []
    for name in ("convirt_500",) if "collapse" in options.only else ():
        rows = np.load(data / f"{name}.npy").astype(np.float32)
        for split in range(COURSES):
            path = options.work / f"collapse-{name}-{split}.json"
            methods = once(path, partial(collapse, rows, split))
            courses.append({"data": name, "split": split, "methods": methods})
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    kept = [r for r in known.get("records", []) if "method" in r and _family(r["curve"]) not in options.only]
    records = sorted([*kept, *records], key=lambda r: CURVES.index(_family(r["curve"])))
    courses = courses or known.get("collapse", [])
    commits = known.get("commits", {}) | dict.fromkeys(options.only, provenance(SEED)["commit"])
    about = {"provenance": provenance(SEED), "commits": commits, "splits": SPLITS, "test": TEST, "terms": dict(TERMS)}
    write_json(options.out, about | {"records": records, "collapse": courses})
    draw_curves(records, options.figures / "learning_curves.svg")
    if courses:
        draw_collapse(courses, options.figures / "collapse.svg")


def _family(curve: str) -> str:
    return curve.split(",", maxsplit=1)[0]


if __name__ == "__main__":
    main()
