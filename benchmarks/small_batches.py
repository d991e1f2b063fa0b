"""Processor time of value and gradient for small batches on a CPU, in turns in one process.

    python benchmarks/small_batches.py --out benchmarks/results/small_batches.json

"csaligner" is CSAlignerLoss as `auto` chooses it; "dense autograd" the plain torch of rivals.py; "floor" the seven
products of N x N x d alone. One thread; each round in another order, since what ran before decides what is in the
caches; medians over the rounds, and the ratio to dense autograd of each round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from loss import SCALE, SIGMA, Place, clouds
from machine import describe, write
from rivals import csaligner_tiled, dense
from torch import Tensor

from csaligner import CSAlignerLoss
from csaligner.run_folder import provenance

SIZES = ((1, 512), (8, 512), (32, 512), (64, 512), (128, 512), (256, 512), (512, 512), (512, 768), (1024, 512))


def measure(rows: int, dim: int, rounds: int) -> dict[str, Any]:
    x, y = clouds(rows, dim, Place())
    loss, names = CSAlignerLoss(bandwidth=SIGMA), torch.randperm(rows)

    def gradient(value: Tensor) -> None:
        torch.autograd.grad(value, (x, y))

    def floor() -> None:
        out, a, b = torch.empty(rows, rows), x.detach(), y.detach()
        for _ in range(3):
            torch.mm(a, b.T, out=out)
        for _ in range(4):
            torch.mm(out, b)

    work: dict[str, Callable[[], None]] = {
        "csaligner": lambda: gradient(loss(x, y, SCALE).total),
        "csaligner with ids": lambda: gradient(loss(x, y, SCALE, names, names).total),
        "tiled": lambda: gradient(csaligner_tiled(x, y, SCALE, SIGMA)),
        "dense autograd": lambda: gradient(dense(x, y, SCALE, SIGMA)),
        "floor": floor,
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    order = random.Random(0)
    for number in range(rounds + 3):
        for name, function in order.sample(list(work.items()), len(work)):
            start = time.process_time()
            function()
            if number >= 3:  # the first rounds warm up
                seconds[name].append(time.process_time() - start)
    ratio = {
        name: round(statistics.median(a / b for a, b in zip(values, seconds["dense autograd"], strict=True)), 3)
        for name, values in seconds.items()
    }
    milliseconds = {name: round(1e3 * statistics.median(values), 3) for name, values in seconds.items()}
    return {"rows": rows, "dim": dim, "median_ms": milliseconds, "ratio_to_dense_autograd": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/small_batches.json"))
    parser.add_argument("--rounds", type=int, default=41)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = [measure(*size, arguments.rounds) for size in SIZES]
    content = {"machine": describe(), "commit": provenance(0)["commit"], "scale": SCALE, "sigma": SIGMA}
    write(arguments.out, content | {"records": records})


if __name__ == "__main__":
    main()
