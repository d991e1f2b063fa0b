"""Long runs: 10,000 steps in fp32 and bf16, and the resident memory of a run over time.

    python benchmarks/long_run.py --out benchmarks/results/long_run.json
    python benchmarks/long_run.py --minutes 60 --out benchmarks/results/long_run.json

The first command trains both precisions from the same initialisation and compares losses and test metrics. The second
trains with validation and checkpoints for the given time and fits a line to the resident memory after a warm-up (least
squares). Each replaces its part of the file. Data: shared/data/clip_coco_500.npy (CSALIGNER_SHARED names another
folder), 400 pairs train and 100 test; if it is missing, similar synthetic pairs are used and recorded in the file.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, write
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.config import TrainConfig, build_config
from csaligner.paired_features import pair_features
from csaligner.pipeline import validate
from csaligner.training.samplers import PairSampler
from csaligner.training.trainer import Hooks, Trainer
from csaligner.types import PairedFeatures

SHARED = Path(os.environ.get("CSALIGNER_SHARED", Path(__file__).parents[2] / "shared"))
CLIP = Path("data") / "clip_coco_500.npy"
TEST = 100
METRICS = ("mean_recall@1", "mixed_image_recall@10", "gap/cs", "gap/centroid")


class TimeUp(Exception):
    """The time limit of the run is reached."""


def features() -> tuple[PairedFeatures, PairedFeatures, str]:
    """Return train pairs, test pairs, and their source."""
    if (SHARED / CLIP).is_file():
        image, text = torch.from_numpy(np.load(SHARED / CLIP)).float()
        source = f"CLIP ViT-B/32 features of {len(image)} MSCOCO pairs"
    else:
        g = torch.Generator().manual_seed(0)
        image = torch.randn(500, 768, generator=g)
        text = normalize(0.5 * image + torch.randn(500, 768, generator=g) + 0.3, dim=1)
        image, source = normalize(image, dim=1), "500 synthetic pairs, 768 dimensions"
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(image)))
    test, train = order[:TEST], order[TEST:]
    return pair_features(image[train], text[train]), pair_features(image[test], text[test]), source


@dataclass
class Watch:
    """Record the loss of every step and the resident memory every `every` seconds; end the run after `seconds`."""

    seconds: float = math.inf
    every: float = 5.0
    losses: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    steps: int = 0

    def __call__(self, step: int, total: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter() - self.start
        self.steps = step
        if self.seconds == math.inf:
            self.losses.append(values["loss/total"])
        elif not self.memory or now - self.memory[-1][0] >= self.every:
            self.memory.append((now, resident_mb()))
        if now > self.seconds:
            raise TimeUp


def resident_mb() -> float:
    """Return the resident memory of this process in MB, from /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def trainer(config: TrainConfig, watch: Watch, folder: Path | None = None) -> tuple[Trainer, Aligner, PairedFeatures]:
    train, test, _ = features()
    torch.manual_seed(config.seed)
    model = Aligner.fit_start(train, config)
    hooks = Hooks((lambda m: validate(m, test)) if folder else None, watch)
    return Trainer(model, PairSampler(train, config.batch_size, seed=config.seed), config, folder, hooks), model, test


def precision(name: str, steps: int) -> dict[str, Any]:
    """Train for a number of steps; return the finiteness of losses, the final loss and the test metrics."""
    data = {
        "start": {"kind": "auto"},
        "gate": False,
        "precision": name,
        "batch_size": 100,
        "epochs": steps // 4,
        "evaluate_every": steps // 4,
    }
    watch = Watch()
    run, model, test = trainer(build_config(TrainConfig, data), watch)
    run.fit()
    metrics = validate(model, test)
    weights = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    return {
        "precision": name,
        "steps": len(watch.losses),
        "not_finite": sum(not math.isfinite(v) for v in watch.losses),
        "weights_finite": weights,
        "first_loss": watch.losses[0],
        "last_100_mean_loss": float(np.mean(watch.losses[-100:])),
        "seconds": time.perf_counter() - watch.start,
    } | {k: metrics[k] for k in METRICS}


def slope(samples: list[tuple[float, float]], warm_up: float) -> dict[str, float]:
    """Return the slope in MB per hour (least squares after `warm_up` seconds) and its standard error."""
    t, mb = np.array([s for s in samples if s[0] >= warm_up]).T
    hours = (t - t.mean()) / 3600
    rate = float(hours @ (mb - mb.mean()) / (hours @ hours))
    rest = mb - mb.mean() - rate * hours
    error = float(np.sqrt(rest @ rest / (len(t) - 2) / (hours @ hours)))
    return {"mb_per_hour": rate, "standard_error": error, "first_mb": float(mb[0]), "last_mb": float(mb[-1])}


def long_memory(minutes: float) -> dict[str, Any]:
    """Train with validation and checkpoints until the time limit."""
    config = build_config(
        TrainConfig,
        {"start": {"kind": "auto"}, "gate": False, "batch_size": 100, "epochs": 1_000_000, "evaluate_every": 50},
    )
    watch = Watch(60 * minutes)
    with tempfile.TemporaryDirectory() as folder:
        run, _, _ = trainer(config, watch, Path(folder))
        try:
            run.fit()
        except TimeUp:
            gc.collect()
    warm_up = min(300.0, 60 * minutes / 4)
    step = max(1, len(watch.memory) // 120)
    curve = [[round(t), round(mb, 2)] for t, mb in watch.memory[::step]]
    found = {"minutes": minutes, "warm_up_seconds": warm_up, "steps": watch.steps, "samples": len(watch.memory)}
    return found | slope(watch.memory, warm_up) | {"curve": curve}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/long_run.json"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, help="measure memory for this long, instead of the precisions")
    arguments = parser.parse_args()
    found: dict[str, Any]
    if arguments.minutes:
        found = {"memory": long_memory(arguments.minutes)}
    else:
        found = {"precisions": [precision(name, arguments.steps) for name in ("fp32", "bf16")]}
    part = next(iter(found))
    found[f"{part}_machine"] = describe()
    before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    write(arguments.out, before | {"data": features()[2]} | found)


if __name__ == "__main__":
    main()
