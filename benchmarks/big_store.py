"""Memory and data waiting time of training on a store larger than memory.

    python benchmarks/big_store.py --out benchmarks/results/big_store.json

Writes a store of random pairs (--rows, 1,000,000 by default) of 768 dimensions in float16, trains the default adapters
on it for one epoch (or --steps) in a separate process, and records the peak resident memory of that process (including
mapped files) and the share of time spent waiting for data. The store is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, peak_rss_mb, write

from csaligner.adapters.aligner import Aligner
from csaligner.config import TrainConfig, build_config
from csaligner.pipeline import validate
from csaligner.store.manifest import Manifest
from csaligner.store.shard_files import ShardRows, write_shard
from csaligner.store.store import Store, finish
from csaligner.training.trainer import Hooks, Trainer
from csaligner.training.training_data import TrainingData, some_pairs
from csaligner.types import Batch, EncoderInfo, Sampler

DIM, SHARD, VALIDATION, SHARED = 768, 50_000, 1_000, 32


def make_store(folder: Path, rows: int) -> None:
    """Pairs that share SHARED hidden directions, the rest noise; the first VALIDATION are used for validation."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((2, SHARED, DIM), dtype=np.float32)
    shards = []
    for number, start in enumerate(range(0, rows, SHARD)):
        size = min(SHARD, rows - start)
        hidden = rng.standard_normal((size, SHARED), dtype=np.float32)
        image, text = (hidden @ m + rng.standard_normal((size, DIM), dtype=np.float32) for m in mixing)
        names = range(start, start + size)
        metadata = [(f"{i:08d}", f"caption {i}", "", "val" if i < VALIDATION else "train", f"{i:08d}") for i in names]
        shards.append(write_shard(folder, number, ShardRows(image, text, metadata), "float16"))
        print(f"shard {number}: {start + size} rows", file=sys.stderr)
    encoders = EncoderInfo("random", "1", "image", DIM, {}), EncoderInfo("random", "1", "text", DIM, {})
    manifest = Manifest("random", "random", "", *encoders, "float16", SHARD, shards=tuple(shards))
    finish(folder, manifest)


class FirstBatches:
    """Yield the first batches of each epoch of a sampler."""

    def __init__(self, sampler: Sampler, batches: int) -> None:
        self._sampler = sampler
        self.batches_per_epoch = min(batches, sampler.batches_per_epoch)

    def epoch(self, number: int) -> Iterator[Batch]:
        return islice(self._sampler.epoch(number), self.batches_per_epoch)


def measure(folder: Path, batch_size: int, steps: int) -> dict[str, Any]:
    """Train and return the figures of this process."""
    imports, started = peak_rss_mb(), time.perf_counter()
    data = TrainingData(Store.open(folder / "store"))
    config = build_config(
        TrainConfig,
        {"start": {"kind": "auto"}, "gate": False, "epochs": 1, "batch_size": batch_size, "val_images": VALIDATION},
    )
    model = Aligner.fit_start(some_pairs(data.pairs, "train", config.start.images), config)
    reached: dict[str, float] = {}

    def report(step: int, total: int, values: Any) -> None:
        if step == 1:
            reached["seconds_until_first_step"] = time.perf_counter() - started
            reached["peak_mb_until_first_step"] = peak_rss_mb()
        if step % 50 == 0:
            print(f"{step}/{total}: {peak_rss_mb():.0f} MB", file=sys.stderr)

    sampler = FirstBatches(data.sampler(config), steps)
    hooks = Hooks(partial(validate, val=data.validation(config)), report)
    state = Trainer(model, sampler, config, folder / "run", hooks).fit()
    last = state.history[-1]
    return reached | {
        "imports_mb": imports,
        "peak_mb": peak_rss_mb(),
        "steps": last["step"],
        "steps_per_second": last["steps_per_second"],
        "data_wait_share": last["data_wait"],
        "loss": last["loss/total"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument(
        "--steps", type=int, default=10_000, help="maximum number of steps; batches are drawn from all rows"
    )
    parser.add_argument("--folder", type=Path, help="folder of a store to reuse, or to create and keep")
    parser.add_argument("--child", action="store_true", help="internal: train on the store in this folder")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.folder, args.batch_size, args.steps)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        store = (args.folder or Path(temporary)) / "store"
        if not store.exists():
            store.mkdir(parents=True)
            make_store(store, args.rows)
        size = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        with tempfile.TemporaryDirectory(dir=store.parent) as run:
            (Path(run) / "store").symlink_to(store)
            words = ["--folder", run, "--batch-size", str(args.batch_size), "--steps", str(args.steps)]
            command = [sys.executable, __file__, "--child", *words]
            figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    setting = {"rows": args.rows, "dim": DIM, "dtype": "float16", "store_mb": size / 2**20, "batch": args.batch_size}
    content = {"machine": describe(), "setting": setting, "figures": figures}
    print(json.dumps(content, indent=1))
    if args.out:
        write(args.out, content)


if __name__ == "__main__":
    main()
