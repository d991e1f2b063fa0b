"""Training on a store that is larger than the memory it may take.

    python benchmarks/big_store.py --out benchmarks/results/big_store.json

Writes a store of random pairs (--rows, 1,000,000 by default) of 768 dimensions in float16, trains one epoch of the
default adapters on it in a process of its own, and reads off that process's largest resident memory, mapped files
included, and the share of the time that it waited for data. The store is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, peak_rss_mb, write

from csaligner.config import TrainConfig, build_config
from csaligner.data.manifest import Manifest
from csaligner.data.shards import Rows, write_shard
from csaligner.data.store import Store, finish
from csaligner.runs import train
from csaligner.training.trainer import METRICS
from csaligner.types import EncoderInfo

DIM, SHARD, VALIDATION, SHARED = 768, 50_000, 1_000, 32


def make_store(folder: Path, rows: int) -> None:
    """Pairs that share SHARED hidden directions, the rest noise; the first VALIDATION of them validate."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((2, SHARED, DIM), dtype=np.float32)
    shards = []
    for number, start in enumerate(range(0, rows, SHARD)):
        size = min(SHARD, rows - start)
        hidden = rng.standard_normal((size, SHARED), dtype=np.float32)
        image, text = (hidden @ m + rng.standard_normal((size, DIM), dtype=np.float32) for m in mixing)
        names = range(start, start + size)
        metadata = [(f"{i:08d}", f"caption {i}", "", "val" if i < VALIDATION else "train", f"{i:08d}") for i in names]
        shards.append(write_shard(folder, number, Rows(image, text, metadata), "float16"))
        print(f"shard {number}: {start + size} rows", file=sys.stderr)
    encoders = EncoderInfo("random", "1", "image", DIM, {}), EncoderInfo("random", "1", "text", DIM, {})
    manifest = Manifest("random", "random", "", *encoders, "float16", SHARD, shards=tuple(shards))
    finish(folder, manifest)


def measure(folder: Path, batch_size: int) -> dict[str, Any]:
    """In the process that trains: its figures."""
    started = time.perf_counter()
    store = Store.open(folder / "store")
    config = build_config(TrainConfig, {"epochs": 1, "batch_size": batch_size, "val_images": VALIDATION})
    imports = peak_rss_mb()
    reached: dict[str, float] = {}

    def report(step: int, total: int, values: Any) -> None:
        if step == 1:
            reached["seconds_until_first_step"] = time.perf_counter() - started
            reached["peak_mb_until_first_step"] = peak_rss_mb()
        if step % 100 == 0:
            print(f"{step}/{total}: {peak_rss_mb():.0f} MB", file=sys.stderr)

    train(store, config, folder / "run", report)
    last = json.loads((folder / "run" / METRICS).read_text(encoding="utf-8").splitlines()[-1])
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
    parser.add_argument("--train-on", type=Path, help="Internal: the folder of a store that is there.")
    args = parser.parse_args()
    if args.train_on:
        print(json.dumps(measure(args.train_on, args.batch_size)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "store").mkdir()
        make_store(folder / "store", args.rows)
        size = sum(file.stat().st_size for file in (folder / "store").rglob("*") if file.is_file())
        command = [sys.executable, __file__, "--train-on", name, "--batch-size", str(args.batch_size)]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    setting = {"rows": args.rows, "dim": DIM, "dtype": "float16", "store_mb": size / 2**20, "batch": args.batch_size}
    content = {"machine": describe(), "setting": setting, "figures": figures}
    print(json.dumps(content, indent=1))
    if args.out:
        write(args.out, content)


if __name__ == "__main__":
    main()
