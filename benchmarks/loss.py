"""Value and gradient of the loss, side by side with what a user would take instead.

    python benchmarks/loss.py --out benchmarks/results/loss.json

Times: one process, one warm-up each, then rounds in which every implementation runs once in turn; median and
spread. Memory: one fresh process each, peak resident memory above what it held after the imports. Errors:
against dense float64 on the same inputs. Floor: the matrix products alone (14 N^2 d flops, or 12 for MMD), at
the speed of one product in the tile shape, timed in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe, peak_rss_mb, write
from rivals import FLOPS, GROUPS, LOSSES, Loss
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.ops import reference, tiles
from csaligner.ops.kernels import Gaussian

SCALE, SIGMA = 15.0, 0.5


def clouds(rows: int, dim: int) -> tuple[Tensor, Tensor]:
    """Unit rows with a modality gap and correlated pairs, so that no term is trivial."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=g)
    y = 0.5 * x + torch.randn(rows, dim, generator=g) + 0.3
    return normalize(x, dim=1).requires_grad_(), normalize(y, dim=1).requires_grad_()


def once(loss: Loss, x: Tensor, y: Tensor) -> tuple[float, float, tuple[Tensor, ...]]:
    """(seconds, value, gradients) of one evaluation."""
    start = time.perf_counter()
    value = loss(x, y, SCALE, SIGMA)
    grads = torch.autograd.grad(value, (x, y))
    return time.perf_counter() - start, value.item(), grads


def product_seconds(x: Tensor, y: Tensor, flops: int, repeats: int = 10) -> float:
    """Time of flops * N^2 d at the speed of x_i y_j^T on one tile."""
    a, b = x.detach()[: tiles.CPU_BLOCK], y.detach()[: tiles.CPU_BLOCK]
    out = torch.empty(len(a), len(b))
    torch.mm(a, b.T, out=out)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, b.T, out=out)
    each = (time.perf_counter() - start) / repeats
    return each * flops / 2 * len(x) * len(y) / (len(a) * len(b))


def timings(names: list[str], flops: int, rows: int, dim: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each implementation in each round; under "floor" those of the products alone."""
    x, y = clouds(rows, dim)
    seconds: dict[str, list[float]] = {name: [] for name in [*names, "floor"]}
    for name in names:
        once(LOSSES[name], x, y)
    for _ in range(repeats):
        for name in names:
            seconds[name].append(once(LOSSES[name], x, y)[0])
        seconds["floor"].append(product_seconds(x, y, flops))
    return seconds


def peak_memory(name: str, rows: int, dim: int) -> float:
    """MB above the imports, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--sizes", str(rows), "--dim", str(dim)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_memory(name: str, rows: int, dim: int) -> None:
    before = peak_rss_mb()
    once(LOSSES[name], *clouds(rows, dim))
    print(json.dumps(peak_rss_mb() - before))


def tangential(grads: tuple[Tensor, ...], points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients without their part along the unit row, which differs between k(x.y) and k(|x - y|)."""
    pairs = [(g.double(), p.detach()) for g, p in zip(grads, points, strict=True)]
    return tuple(g - (g * p).sum(dim=1, keepdim=True) * p for g, p in pairs)


def errors(group: str, rows: int, dim: int) -> dict[str, dict[str, float]]:
    """Against dense float64: value; largest of the tangential gradient, and the same over its largest entry."""
    x, y = clouds(rows, dim)
    exact = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    order, kernel = torch.arange(rows), Gaussian(SIGMA)
    if group == "mmd":
        wanted = reference.mmd(*exact, kernel)
    else:
        nce = reference.info_nce(*exact, SCALE, order, order)
        wanted = nce + reference.cauchy_schwarz(*exact, kernel)
    wanted_grads = torch.autograd.grad(wanted, exact)
    wanted_grads = tangential(wanted_grads, exact)
    largest = max(float(grad.abs().max()) for grad in wanted_grads)
    result = {}
    for name in GROUPS[group]:
        _, value, grads = once(LOSSES[name], x, y)
        grads = tangential(grads, exact)
        worst = max(float((a - b).abs().max()) for a, b in zip(grads, wanted_grads, strict=True))
        result[name] = {
            "value": abs(value - wanted.item()),
            "gradient": worst,
            "gradient_relative": worst / largest,
        }
    return result


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    records = []
    for group, losses in GROUPS.items():
        names = [name for name in losses if name not in arguments.skip]
        for rows in arguments.sizes:
            repeats = arguments.repeats if rows <= 4096 else min(arguments.repeats, 3)
            seconds = timings(names, FLOPS[group], rows, arguments.dim, repeats)
            for name, values in seconds.items():
                record = {
                    "group": group,
                    "implementation": name,
                    "rows": rows,
                    "dim": arguments.dim,
                    "seconds": [round(value, 4) for value in values],
                    "median_seconds": round(statistics.median(values), 4),
                }
                if name != "floor":
                    record["peak_mb"] = round(peak_memory(name, rows, arguments.dim), 1)
                records.append(record)
                print(json.dumps(record), file=sys.stderr, flush=True)
    return {
        "machine": describe(),
        "setting": {"scale": SCALE, "sigma": SIGMA, "dtype": "float32", "what": "value and gradient"},
        "records": records,
        "errors_at_1024_rows": {group: errors(group, 1024, arguments.dim) for group in GROUPS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loss.json"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; at most 3 above 4,096 rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip", nargs="*", default=[], help="implementations to leave out, such as compiled")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        measure_memory(arguments.memory_of, arguments.sizes[0], arguments.dim)
    else:
        write(arguments.out, run(arguments))


if __name__ == "__main__":
    main()
