"""Time and memory of value and gradient against the number of rows, from 1,024 to 65,536.

    python benchmarks/scaling.py --out benchmarks/results/scaling.json --figure docs/scaling.svg

Every size runs in a separate process: processor seconds of one evaluation after a small warm-up, and the peak resident
memory above its value with the inputs allocated. Expected growth: time as N^2, memory as N.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from loss import Place, clouds, once
from machine import describe, peak_rss_mb, write
from rivals import LOSSES

from csaligner.files import write_atomically
from csaligner.ops.tiled_contrastive import KEPT_BYTES


def measure(rows: int, dim: int) -> dict[str, float]:
    """One evaluation in this process."""
    place = Place()
    once(LOSSES["csaligner"], *clouds(512, dim, place), place)
    x, y = clouds(rows, dim, place)
    before = peak_rss_mb()
    (wall, processor), value, _ = once(LOSSES["csaligner"], x, y, place)
    return {
        "rows": rows,
        "dim": dim,
        "seconds": round(wall, 3),
        "cpu_seconds": round(processor, 3),
        "extra_mb": round(peak_rss_mb() - before, 1),
        "inputs_mb": round(2 * x.nbytes / 2**20, 1),
        "value": value,
    }


def in_own_process(rows: int, dim: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(rows), "--dim", str(dim)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(record), file=sys.stderr, flush=True)
    return record


def slope(records: list[dict[str, Any]], key: str) -> float:
    """Return the least-squares exponent of key against rows, on log scales."""
    xs = [math.log(r["rows"]) for r in records]
    ys = [math.log(max(r[key], 1e-9)) for r in records]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True)) / sum((x - mx) ** 2 for x in xs)


def draw(records: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    rows = [r["rows"] for r in records]
    guides = (("cpu_seconds", "processor seconds", 2), ("extra_mb", "MB above the inputs", 1))
    for axes, (key, label, power) in zip(panels, guides, strict=True):
        values = [r[key] for r in records]
        axes.loglog(rows, values, "o-", color="#00795a", label="csaligner")
        guide = [values[-1] * (n / rows[-1]) ** power for n in rows]
        axes.loglog(rows, guide, ":", color="#5b6472", label=f"N^{power}" if power > 1 else "N")
        axes.set_xlabel("rows of each modality")
        axes.set_ylabel(label)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/scaling.svg"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.dim)))
        return
    records = [in_own_process(rows, arguments.dim) for rows in arguments.sizes]
    content = summary(records)
    write(arguments.out, content)
    draw(records, arguments.figure)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the exponents of the large sizes; memory excludes the kept products, whose size is constant."""
    large = [r for r in records if r["rows"] >= 4096] or records
    full = [r | {"beside": r["extra_mb"] - KEPT_BYTES / 2**20} for r in records if r["rows"] >= 16384]
    return {
        "machine": describe(),
        "records": records,
        "time_exponent": round(slope(large, "cpu_seconds"), 3),
        "memory_exponent": round(slope(full, "beside"), 3) if len(full) > 1 else None,
    }


if __name__ == "__main__":
    main()
