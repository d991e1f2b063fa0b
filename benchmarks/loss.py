"""Time, memory and errors of the loss and its gradients, compared with alternative implementations.

    python benchmarks/loss.py --out benchmarks/results/loss.json
    python benchmarks/loss.py --device cuda --dtype bfloat16 --sizes 8192 32768 --out results/gpu.json

Times: one process, one warm-up each, then rounds in which every implementation runs once in turn; median and
spread of wall and processor time. Memory: one fresh process each, peak resident memory above its value after the
imports; on a GPU, as counted by torch. Errors: against dense float64 on the same inputs. Floor: the matrix
products alone (14 N^2 d flops, or 12 for MMD), at the speed of one product in the tile shape, timed in the same
rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
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
# Rows above which an implementation is not timed: KeOps takes minutes on a CPU.
MOST_ROWS = {"keops": 1024}


@dataclass(frozen=True)
class Place:
    """Device and dtype of the features."""

    device: str = "cpu"
    dtype: str = "float32"

    def put(self, x: Tensor) -> Tensor:
        return x.to(device=self.device, dtype=getattr(torch, self.dtype)).requires_grad_()

    def wait(self) -> None:
        """Wait until all GPU work is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def clouds(rows: int, dim: int, place: Place) -> tuple[Tensor, Tensor]:
    """Unit rows with a modality gap and correlated pairs, so that no term is trivial."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, dim, generator=g)
    y = 0.5 * x + torch.randn(rows, dim, generator=g) + 0.3
    return place.put(normalize(x, dim=1)), place.put(normalize(y, dim=1))


class Clock:
    """Wall and processor seconds; the latter are robust to other load on the core."""

    def __init__(self, place: Place) -> None:
        self.place = place
        place.wait()
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        self.place.wait()
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def once(loss: Loss, x: Tensor, y: Tensor, place: Place) -> tuple[tuple[float, float], float, tuple[Tensor, ...]]:
    """Return ((wall, processor) seconds, value, gradients) of one evaluation."""
    clock = Clock(place)
    value = loss(x, y, SCALE, SIGMA)
    grads = torch.autograd.grad(value, (x, y))
    return clock.read(), value.item(), grads


def product_seconds(x: Tensor, y: Tensor, flops: int, place: Place, repeats: int = 10) -> tuple[float, float]:
    """Return the time of flops * N^2 d at the speed of x_i y_j^T on one tile."""
    size = tiles.block_size(len(x), x.device)
    a, b = x.detach()[:size], y.detach()[:size]
    out = torch.empty(len(a), len(b), dtype=a.dtype, device=a.device)
    torch.mm(a, b.T, out=out)
    clock = Clock(place)
    for _ in range(repeats):
        torch.mm(a, b.T, out=out)
    factor = flops / 2 * len(x) * len(y) / (len(a) * len(b)) / repeats
    wall, processor = clock.read()
    return wall * factor, processor * factor


def timings(
    names: list[str], flops: int, rows: int, arguments: argparse.Namespace
) -> dict[str, list[tuple[float, float]]]:
    """Return (wall, processor) seconds of each implementation per round; "floor": the products alone."""
    place = arguments.place
    x, y = clouds(rows, arguments.dim, place)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in [*names, "floor"]}
    for name in names:
        once(LOSSES[name], x, y, place)
    for _ in range(arguments.repeats if rows <= 4096 else min(arguments.repeats, 3)):
        for name in names:
            seconds[name].append(once(LOSSES[name], x, y, place)[0])
        seconds["floor"].append(product_seconds(x, y, flops, place))
    return seconds


def peak_memory(name: str, rows: int, arguments: argparse.Namespace) -> float:
    """Return the peak MB above the imports, in a separate process."""
    place = arguments.place
    options = ["--sizes", rows, "--dim", arguments.dim, "--device", place.device, "--dtype", place.dtype]
    command = [sys.executable, __file__, "--memory-of", name, *map(str, options)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_memory(name: str, rows: int, dim: int, place: Place) -> None:
    before = peak_rss_mb()
    once(LOSSES[name], *clouds(rows, dim, place), place)
    on_gpu = torch.cuda.max_memory_allocated() / 2**20 if place.device == "cuda" else None
    print(json.dumps(peak_rss_mb() - before if on_gpu is None else on_gpu))


def tangential(grads: tuple[Tensor, ...], points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Project out the radial part of the gradients, which differs between k(x.y) and k(|x - y|)."""
    pairs = [(g.double(), p.detach()) for g, p in zip(grads, points, strict=True)]
    return tuple(g - (g * p).sum(dim=1, keepdim=True) * p for g, p in pairs)


def errors(group: str, names: list[str], rows: int, dim: int) -> dict[str, dict[str, float]]:
    """Return errors to dense float64: value; tangential gradient, largest and relative to its largest entry."""
    place = Place()
    x, y = clouds(rows, dim, place)
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
    for name in names:
        _, value, grads = once(LOSSES[name], x, y, place)
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
        for rows in arguments.sizes:
            names = [n for n in losses if n not in arguments.skip and rows <= MOST_ROWS.get(n, rows)]
            seconds = timings(names, FLOPS[group], rows, arguments)
            for name, values in seconds.items():
                wall, processor = ([round(value, 4) for value in kind] for kind in zip(*values, strict=True))
                record = {
                    "group": group,
                    "implementation": name,
                    "rows": rows,
                    "dim": arguments.dim,
                    "seconds": wall,
                    "cpu_seconds": processor,
                    "median_seconds": round(statistics.median(wall), 4),
                    "median_cpu_seconds": round(statistics.median(processor), 4),
                }
                if name != "floor":
                    record["peak_mb"] = round(peak_memory(name, rows, arguments), 1)
                records.append(record)
                print(json.dumps(record), file=sys.stderr, flush=True)
    return {
        "machine": describe(arguments.device),
        "setting": {"scale": SCALE, "sigma": SIGMA, "dtype": arguments.dtype, "what": "value and gradient"},
        "records": records,
        "errors_at_1024_rows": {
            group: errors(group, [n for n in losses if n not in arguments.skip], 1024, arguments.dim)
            for group, losses in GROUPS.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loss.json"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 8192])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5, help="rounds; at most 3 above 4,096 rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--skip", nargs="*", default=[], help="implementations to skip, such as compiled")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.place = Place(arguments.device, arguments.dtype)
    if arguments.device != "cuda" and "csaligner_triton" not in arguments.skip:
        arguments.skip = [*arguments.skip, "csaligner_triton"]
    if importlib.util.find_spec("pykeops") is None:
        arguments.skip = [*arguments.skip, "keops"]
    if arguments.memory_of:
        measure_memory(arguments.memory_of, arguments.sizes[0], arguments.dim, arguments.place)
    else:
        write(arguments.out, run(arguments))


if __name__ == "__main__":
    main()
