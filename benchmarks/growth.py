"""Processor time and memory of each step against the number of items, from 1,000 to 1,000,000.

    python benchmarks/growth.py [--out benchmarks/results/growth.json] [--figure docs/growth.svg]
    python benchmarks/growth.py --draw      # the figure and the exponents from the results as they are

Every step and size runs in its own process on one thread, and is written to the results at once: the same command
resumes. Features are synthetic (clusters shared by both modalities) where images are not the point; `embed` reads
drawings of the demo, `check_data` a table with as many files of 8 x 8 pixels. `search` is one query of an open index,
exact up to 200,000 items, faiss above; index and search of 1,000,000 items are those of `benchmarks/search.py scale`,
which fills the same index. Exponents are fitted over sizes of at least 10,000, `embed` over all.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, peak_rss_mb, write
from scaling import slope
from search import filled_index, vectors_like

from csaligner.config import TrainConfig
from csaligner.estimator import CSAligner
from csaligner.evaluation.evaluate import evaluate
from csaligner.files import write_atomically
from csaligner.paired_features import pair_features
from csaligner.run_folder import provenance
from csaligner.types import PairedFeatures

OUT, FIGURE, SEARCH = (
    Path(p) for p in ("benchmarks/results/growth.json", "docs/growth.svg", "benchmarks/results/search.json")
)
SIZES = (1_000, 10_000, 100_000, 1_000_000)
DIM, QUERIES, IMAGES = 64, 50, 200
FITTED_FROM = 10_000
REASONS = {"embed": "the time per image is constant: hours"}


def pairs(count: int) -> PairedFeatures:
    image, text = (vectors_like(m, count, 0, DIM) for m in ("image", "text"))
    return pair_features(image, text)


def train(count: int, _: Path) -> float:
    """One epoch, with the chosen start and the gate."""
    features = pairs(count)
    config = TrainConfig(epochs=1)
    return timed(lambda: CSAligner(config, verbose=False).fit_features(features))


def evaluation(count: int, _: Path) -> float:
    features = pairs(count)
    return timed(lambda: evaluate(features))


def index(count: int, folder: Path) -> float:
    return timed(lambda: filled_index(folder / "index", count, "auto"))


def search(count: int, folder: Path) -> float:
    found, _ = filled_index(folder / "index", count, "auto")
    found.warm()
    queries = vectors_like("text", QUERIES + 10, 7, found.model.aligner.config.dim_text)
    for query in queries[:10]:
        found.search_features(query, "text")
    return timed(lambda: [found.search_features(query, "text") for query in queries[10:]]) / QUERIES


def embed(count: int, folder: Path) -> float:
    from embed import Some

    from csaligner.datasets import open_dataset
    from csaligner.datasets.clean import clean_items
    from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER, open_encoder
    from csaligner.store.embed import ExtractSettings
    from csaligner.store.embed import embed as embed_items

    items = list(clean_items(open_dataset("openmoji")).items)[:count]
    encoders = open_encoder(IMAGE_ENCODER, "image"), open_encoder(TEXT_ENCODER, "text")
    return timed(lambda: embed_items(Some(items), *encoders, folder / "store", ExtractSettings(workers=0)))


def check_data(count: int, folder: Path) -> float:
    from PIL import Image

    from csaligner.datasets import open_dataset
    from csaligner.datasets.check import check_data as check

    rng = np.random.default_rng(0)
    for n in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{n}.png")
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for n in range(count):
            if n >= IMAGES:
                os.link(folder / f"{n % IMAGES}.png", folder / f"{n}.png")
            rows.writerow([f"{n}.png", f"caption {n} of an image"])
    return timed(lambda: check(open_dataset(str(folder / "captions.csv")), workers=0))


STEPS: dict[str, tuple[Callable[[int, Path], float], tuple[int, ...]]] = {
    "index": (index, SIZES[:3]),
    "search": (search, SIZES[:3]),
    "train": (train, SIZES),
    "eval": (evaluation, SIZES),
    "check_data": (check_data, SIZES),
    "embed": (embed, (100, 300, 1_000)),
}


def timed(call: Callable[[], object]) -> float:
    """Return processor seconds of this process, all threads and system calls included."""
    began = time.process_time()
    call()
    return time.process_time() - began


def measure(name: str, count: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seconds = STEPS[name][0](count, Path(folder))
    return {"step": name, "items": count, "seconds": float(f"{seconds:.3g}"), "peak_mb": round(peak_rss_mb())}


def of_search() -> list[dict[str, Any]]:
    """Return index and search of 1,000,000 items from the results of search.py, whose index is the same."""
    found = json.loads(SEARCH.read_text()).get(f"scale/{SIZES[-1]}/faiss")
    if found is None or "commit" not in found:
        return []
    built = {"seconds": found["insert_cpu_s"] + found["finish_cpu_s"], "peak_mb": found["peak_while_building_mb"]}
    asked = {"seconds": found["vectors_only"]["cpu_p50_ms"] / 1000, "peak_mb": found["resident_mb"]}
    about = {"items": SIZES[-1], "commit": found["commit"], "from": SEARCH.name}
    return [{"step": "index"} | built | about, {"step": "search"} | asked | about]


def exponents(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the fitted exponent of each step, and of N log N over the same sizes."""
    found = {}
    for name in STEPS:
        same = (r for r in records if r["step"] == name and not (name == "search" and "from" in r))  # exact alone
        rows = [{"rows": r["items"], "seconds": r["seconds"]} for r in same]
        large = [r for r in rows if r["rows"] >= FITTED_FROM or name == "embed"]
        if len(large) > 1:
            found[name] = round(slope(large, "seconds"), 2)
            limit = [{"rows": r["rows"], "seconds": r["rows"] * math.log(r["rows"])} for r in large]
            found[f"{name}, N log N"] = round(slope(limit, "seconds"), 2)
    return found


def skipped(records: list[dict[str, Any]]) -> dict[str, str]:
    """Return the steps without the largest size, with the reason."""
    measured = {r["step"] for r in records if r["items"] == SIZES[-1]}
    return {name: REASONS.get(name, "not run: the machine was busy") for name in STEPS if name not in measured}


def draw(records: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(STEPS, "osD^vP", strict=True):
        rows = sorted((r["items"], r["seconds"]) for r in records if r["step"] == name)
        if not rows:
            continue
        label = "search (one query)" if name == "search" else name.replace("_", "-")
        axes.loglog(*zip(*rows, strict=True), marker=marker, label=label)
    n = np.logspace(3, 6, 30)
    axes.loglog(n, 2e-4 * n, ":", color="#5b6472", label="N")
    axes.loglog(n, 2e-4 * n * np.log(n) / math.log(1000), "--", color="#5b6472", label="N log N")
    axes.set_xlabel("items or pairs")
    axes.set_ylabel("processor seconds, one thread")
    axes.legend(frameon=False, loc="upper left", fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--one", nargs=2, metavar=("STEP", "ITEMS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"records": []}
    records: list[dict[str, Any]] = known["records"]
    done = {(r["step"], r["items"]) for r in records}
    wanted = sorted((n, name) for name, (_, sizes) in STEPS.items() for n in sizes)
    for count, name in [] if arguments.draw else wanted:
        if (name, count) not in done:
            command = [sys.executable, __file__, "--one", name, str(count)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            records.append(json.loads(output.splitlines()[-1]) | {"commit": provenance(0)["commit"]})
            print(records[-1], flush=True)
            write(arguments.out, {"machine": describe(), "records": records})
    records = [r for r in records if "from" not in r] + of_search()
    content = {"machine": describe(), "exponents": exponents(records), "skipped": skipped(records)}
    write(arguments.out, content | {"records": records})
    draw(records, arguments.figure)


if __name__ == "__main__":
    main()
