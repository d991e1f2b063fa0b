"""Benchmarks of the mixed index: time and memory at scale, concurrent clients, and retrieval quality.

    python benchmarks/search.py scale --rows 100000 --approximate exact faiss ivf_rq
    python benchmarks/search.py clients --seconds 60
    python benchmarks/search.py clip --features shared/data/clip_coco_500.npy
    python benchmarks/search.py quality --store STORE --run CS_ALIGNER_RUN --infonce INFONCE_RUN [--run ... for seeds]

Each writes its part of benchmarks/results/search.json. Latencies need a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from clip_coco import METHODS
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner, align
from csaligner.config import StartConfig, TrainConfig
from csaligner.evaluation.baselines import MeanCentring
from csaligner.evaluation.mixed_search import mixed_search_of, modality_bias
from csaligner.evaluation.ranking import ranks
from csaligner.model import BUNDLED, AlignedModel
from csaligner.paired_features import pair_features
from csaligner.run_folder import model_folder, provenance
from csaligner.search.build import create_index, finish
from csaligner.search.calibration import MODALITIES, Calibration
from csaligner.search.index import Index
from csaligner.search.lance_table import Row
from csaligner.store.store import Store
from csaligner.types import Modality, PairedFeatures

OUT = Path(__file__).parent / "results" / "search.json"
PART = 10_000
QUERIES = 200
WORDS = (
    "red",
    "green",
    "small",
    "big",
    "old",
    "happy",
    "flying",
    "wooden",
    "cat",
    "dog",
    "bird",
    "tree",
    "house",
    "boat",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    scale = commands.add_parser("scale")
    scale.add_argument("--rows", type=int, default=100_000)
    scale.add_argument("--approximate", nargs="+", default=["exact"], help="one after another on the same rows")
    scale.add_argument("--folder", type=Path, help="folder for the index; deleted at the end")
    build = commands.add_parser("build", help="the part of scale that builds, in a separate process")
    build.add_argument("index", type=Path)
    build.add_argument("approximate")
    ask = commands.add_parser("ask", help="the part of scale that searches, in a separate process")
    ask.add_argument("index", type=Path)
    clients = commands.add_parser("clients")
    clients.add_argument("--rows", type=int, default=100_000)
    clients.add_argument("--clients", type=int, default=50)
    clients.add_argument("--seconds", type=float, default=60)
    quality = commands.add_parser("quality")
    quality.add_argument("--store", type=Path, required=True)
    quality.add_argument("--run", type=Path, action="append", required=True)
    quality.add_argument("--infonce", type=Path, action="append", required=True)
    clip = commands.add_parser("clip")
    clip.add_argument("--features", type=Path, required=True)
    clip.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.command == "build":
        print(json.dumps(measure_building(arguments.index, arguments.approximate)))
        return
    if arguments.command == "ask":
        print(json.dumps(measure_asking(arguments.index)))
        return
    if arguments.command == "scale":
        measure_scale(arguments.rows, arguments.approximate, arguments.folder)
        return
    if arguments.command == "clients":
        name, found = "clients", measure_clients(arguments.rows, arguments.clients, arguments.seconds)
    elif arguments.command == "clip":
        name, found = "clip", measure_clip(arguments.features, arguments.seeds)
    else:
        name, found = "quality", measure_quality(arguments.store, arguments.run, arguments.infonce)
    record(name, found)


def record(name: str, found: dict[str, Any]) -> None:
    """Write one part of the results, with the machine, its load now, and the commit."""
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    part = {"machine": machine.describe(), "commit": provenance(0)["commit"]} | found
    machine.write(OUT, known | {name: part})
    print(json.dumps({name: part}, indent=1), flush=True)


def vectors_like(modality: Modality, rows: int, seed: int, dim: int = 384) -> torch.Tensor:
    """Return synthetic aligned vectors: 500 clusters common to both modalities, 32 directions in each, and a small gap.

    White noise would be unsuitable: no approximate index can search it.
    """
    shared = np.random.default_rng(0)
    centres, inside = shared.standard_normal((500, dim)), shared.standard_normal((32, dim))
    gap = 0.1 * shared.standard_normal(dim) * (1 if modality == "text" else -1)
    rng = np.random.default_rng([seed, MODALITIES.index(modality)])
    points = centres[rng.integers(0, 500, rows)] + 0.1 * rng.standard_normal((rows, 32)) @ inside
    return normalize(torch.from_numpy((points + gap).astype(np.float32)), dim=1)


def filled_index(folder: Path, rows: int, approximate: str) -> tuple[Index, dict[str, float]]:
    """Half images, half texts. Times: `insert` into the tables, `finish` the rest (not with approximate "none")."""
    create_index(folder, AlignedModel.open(BUNDLED), raw=False)
    index = Index.open(folder)
    seconds = {"insert_s": 0.0, "insert_cpu_s": 0.0}
    for modality in MODALITIES:
        for start in range(0, rows // 2, PART):
            count = min(PART, rows // 2 - start)
            vectors = vectors_like(modality, count, start, index.manifest.dim)
            names = [f"{modality}-{start + n}" for n in range(count)]
            items = [Row(name, modality, "", f"item {name}", "", "", "synthetic", -1, -1, "") for name in names]
            began, began_cpu = time.perf_counter(), time.process_time()
            index.items.put(modality, items, vectors, None, new=True)
            seconds["insert_s"] += time.perf_counter() - began
            seconds["insert_cpu_s"] += time.process_time() - began_cpu
    if approximate == "none":
        return index, seconds
    began = time.perf_counter()
    for modality in MODALITIES:
        index.model.encoder(modality)  # open, as after indexing
    finish(index, approximate)
    return index, seconds | {"finish_s": time.perf_counter() - began}


def measure_scale(rows: int, kinds: list[str], folder: Path | None) -> None:
    """Insert the rows here; build and search each kind in processes of their own, whose memory is that of the task."""
    where = folder or Path(tempfile.mkdtemp())
    try:
        index, seconds = filled_index(where / "index", rows, "none")
        for kind in kinds:
            built, asked = (
                in_own_process(*task) for task in (("build", where / "index", kind), ("ask", where / "index"))
            )
            size = sum(f.stat().st_size for f in (where / "index").rglob("*") if f.is_file()) / 1e6
            about = {"rows": rows, "dim": index.manifest.dim, "disk_mb": size}
            record(f"scale/{rows}/{kind}", _rounded(seconds | built | asked | about))
    finally:
        shutil.rmtree(where, ignore_errors=True)


def in_own_process(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, *map(str, arguments)]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def measure_building(folder: Path, approximate: str) -> dict[str, Any]:
    """Build the approximate index of rows that are there, calibrate, and write the snapshot; on one thread."""
    torch.set_num_threads(1)
    index = Index.open(folder)
    for modality in MODALITIES:
        index.model.encoder(modality)  # open, as after indexing
    began, began_cpu = time.perf_counter(), time.process_time()
    finish(index, approximate)
    how = index.manifest.approximate
    return {
        "finish_s": time.perf_counter() - began,
        "finish_cpu_s": time.process_time() - began_cpu,
        "recall@10": how.recall if how else 1.0,
        "nprobes": how.nprobes if how else None,
        "peak_while_building_mb": machine.peak_rss_mb(),
    }


def measure_asking(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    index = Index.open(folder)
    for modality in MODALITIES:
        index.model.encoder(modality)
    encoders_mb = _resident_mb()
    features = [index.features(words(n)) for n in range(QUERIES)]
    index = Index.open(folder, [index.model.encoder(m) for m in MODALITIES])  # nothing is cached
    began = time.perf_counter()
    index.warm()
    return {
        "warm_s": time.perf_counter() - began,
        "vectors_only": latency(lambda n: index.search_features(features[n], "text")),
        "with_text_encoder": latency(lambda n: index.search(words(n))),
        "encoders_mb": encoders_mb,
        "resident_mb": _resident_mb(),
    }


def words(n: int) -> str:
    """Return a different sentence for each n, so that no answer is cached."""
    rng = np.random.default_rng(n)
    return f"{' '.join(rng.choice(WORDS, 4))} {n}"


def latency(ask: Callable[[int], Any]) -> dict[str, float]:
    """Return wall milliseconds, and processor milliseconds of this process (all threads, system calls included), which
    are robust to other load; the first few calls are excluded."""
    clock, processor = [], []
    for n in range(QUERIES):
        began, began_cpu = time.perf_counter(), time.process_time()
        ask(n)
        clock.append(1e3 * (time.perf_counter() - began))
        processor.append(1e3 * (time.process_time() - began_cpu))
    found: dict[str, float] = {}
    for name, times in (("", clock[10:]), ("cpu_", processor[10:])):
        found |= {f"{name}p50_ms": float(np.median(times)), f"{name}p95_ms": float(np.quantile(times, 0.95))}
    return found


def measure_clients(rows: int, clients: int, seconds: float) -> dict[str, Any]:
    """Run clients on the loopback address that send new queries repeatedly; the server runs in this process too."""
    import http.client

    from csaligner.app.server import ServeSettings, serve

    where = Path(tempfile.mkdtemp())
    try:
        index, _ = filled_index(where / "index", rows, "exact")
        index.warm()
        address: list[str] = []
        settings = ServeSettings(port=0)
        threading.Thread(target=serve, args=(index, settings, address.append), daemon=True).start()
        while not address:
            time.sleep(0.05)
        port = int(address[0].rstrip("/").rpartition(":")[2])
        stop, began_cpu = time.monotonic() + seconds, time.process_time()
        errors: list[str] = []

        def client(number: int) -> list[float]:
            times: list[float] = []
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            while time.monotonic() < stop:
                began = time.perf_counter()
                try:
                    text = words(number * 100_000 + len(times)).replace(" ", "+")
                    connection.request("GET", f"/api/search?q={text}&k=10")
                    answer = connection.getresponse()
                    body = answer.read()
                    if answer.status != 200 or len(json.loads(body)["results"]) != 10:
                        errors.append(f"{answer.status}: {body[:200]!r}")
                except OSError as error:
                    errors.append(repr(error))
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                times.append(1e3 * (time.perf_counter() - began))
            return times

        with ThreadPoolExecutor(clients) as pool:
            times = [t for part in pool.map(client, range(clients)) for t in part]
        spent = time.process_time() - began_cpu
        return _rounded(
            {
                "rows": rows,
                "clients": clients,
                "seconds": seconds,
                "answers": len(times),
                "errors": len(errors),
                "first_error": errors[0] if errors else None,
                "answers_a_second": len(times) / seconds,
                "cpu_ms_an_answer": 1e3 * spent / max(1, len(times)),
                "p50_ms": float(np.median(times)),
                "p95_ms": float(np.quantile(times, 0.95)),
            }
        )
    finally:
        shutil.rmtree(where, ignore_errors=True)


def measure_quality(store: Path, runs: list[Path], infonce: list[Path]) -> dict[str, Any]:
    """Evaluate every method on the test split, with plain cosines and with our calibration. Calibration uses the
    test items without their pairing, as an index does. Mean over the runs (seeds)."""
    opened = Store.open(store)
    test, train = opened.features("test"), opened.features("train")
    start = Aligner.fit_start(train, TrainConfig(start=StartConfig(kind="auto"))).eval()
    raw = projected(start, train), projected(start, test)
    methods: dict[str, list[PairedFeatures]] = {
        "raw": [raw[1]],
        "mean-centring": [MeanCentring.fit(raw[0]).transform(raw[1])],
        "closed-form start": [align(start, test)],
        "InfoNCE": [align(Aligner.load(model_folder(run)), test) for run in infonce],
        "CS-Aligner": [align(Aligner.load(model_folder(run)), test) for run in runs],
    }
    found: dict[str, Any] = {"n_images": len(test.image), "n_captions": len(test.text), "seeds": len(runs)}
    for name, several in methods.items():
        found[name] = _mean([mixed_search_of(features) for features in several])
        found[f"{name}, calibrated"] = _mean([calibrated_metrics(features) for features in several])
    return _rounded(found, 4)


def measure_clip(path: Path, seeds: int) -> dict[str, Any]:
    """The same on real CLIP features, with the folds and methods of benchmarks/clip_coco.py."""
    image, text = np.load(path)
    order = np.random.RandomState(0).permutation(len(image))
    found: dict[str, Any] = {"n_images": len(image) // 5, "n_captions": len(image) // 5, "folds": 5, "seeds": seeds}
    for name in ("raw", "mean-centring", "closed-form start", "InfoNCE", "CS-Aligner"):
        several = []
        for seed in range(seeds if name in {"InfoNCE", "CS-Aligner"} else 1):
            for fold in range(5):
                test = order[fold::5]
                train_pairs, test_pairs = (
                    pair_features(image[rows], text[rows]) for rows in (np.setdiff1d(order, test), test)
                )
                several.append(METHODS[name](train_pairs, test_pairs, seed)[""])
        found[name] = _mean([mixed_search_of(features) for features in several])
        found[f"{name}, calibrated"] = _mean([calibrated_metrics(features) for features in several])
    return _rounded(found, 4)


def projected(start: Aligner, features: PairedFeatures) -> PairedFeatures:
    """Return the raw vectors of the index: (x / |x|) @ map of the untrained baseline, including the gap."""
    from csaligner.search.vector_spaces import raw_vectors

    image, text = raw_vectors(start, "image", features.image), raw_vectors(start, "text", features.text)
    return replace(features, image=normalize(image, dim=1), text=normalize(text, dim=1))


def calibrated_metrics(features: PairedFeatures) -> dict[str, float]:
    """mixed_search metrics of calibrated scores; the definitions are evaluation.mixed_search's."""
    from csaligner.evaluation.mixed_search import _ndcg

    vectors: dict[Modality, torch.Tensor] = {
        "image": normalize(features.image, dim=1),
        "text": normalize(features.text, dim=1),
    }
    calibration = Calibration.fit(vectors)
    assert calibration is not None
    n = len(features.image)
    owner = torch.cat([torch.arange(n), features.text_to_image])
    is_text = torch.arange(len(owner)) >= n
    found: dict[str, float] = {}
    for query, suffix in (("text", ""), ("image", "/image_query")):
        rows = is_text if query == "text" else ~is_text
        parts = [calibration.apply(query, m, vectors[query] @ vectors[m].T) for m in MODALITIES]  # type: ignore[index, arg-type]
        scores = torch.cat(parts, dim=1)
        scores[torch.arange(len(scores)), rows.nonzero()[:, 0]] = -torch.inf
        same = owner[rows][:, None] == owner
        found[f"mixed_ndcg@10{suffix}"] = float(_ndcg(scores, same).mean())
        found[f"modality_bias@10{suffix}"] = float(modality_bias(scores, rows.expand_as(scores)).mean())
        if query == "text":
            image_only = scores.masked_fill(same & is_text, -torch.inf)
            found["mixed_image_recall@10"] = float(ranks(image_only, same & ~is_text).hit_at(10).mean())
    return found


def _mean(several: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in several])) for name in several[0]}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _rounded(values: dict[str, Any], digits: int = 2) -> dict[str, Any]:
    """Round every float in a nested value."""
    return {
        name: _rounded(value, digits)
        if isinstance(value, dict)
        else round(value, digits)
        if isinstance(value, float)
        else value
        for name, value in values.items()
    }


if __name__ == "__main__":
    main()
