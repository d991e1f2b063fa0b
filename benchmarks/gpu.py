"""GPU benchmark of the loss and its gradients against dense autograd, torch.compile and the products alone.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json [--sizes 1024 8192] [--dims 512] [--seconds 270]
    python benchmarks/gpu.py --dry-run --out /tmp/gpu.json

InfoNCE + D_CS with its gradients in both samples. Times: CUDA events after warm-up, median of the rounds.
Memory: torch's peak above the inputs. Errors: gradients against dense float64 of the same formula
on the same inputs, relative in norm.
Floor: the products alone, 14 N^2 d flops, three in the shape of x y^T and four in that of w y, as bfloat16.
Dense autograd in bfloat16 rounds its logits to bfloat16, as it does under autocast.
siglip-kernel: its sigmoid loss, an InfoNCE without D_CS, if the package is installed.
Needs torch and triton only. After --seconds no further measurement starts; what was skipped or failed is in the JSON.
--dry-run executes everything at small sizes, without a GPU in Triton's interpreter: its times mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from csaligner.ops import dispatch
from csaligner.ops.contrastive import RowInfo
from csaligner.ops.kernels import Gaussian

SCALE, SIGMA = 15.0, 0.5
SIZES = {512: (1024, 2048, 4096, 8192, 16384, 32768), 768: (8192, 32768)}
COMPILED: tuple[tuple[int, int], ...] = ((8192, 512), (32768, 512))  # each shape is compiled anew
BESIDE = (65536, 768)  # rows and dimension of the comparison with siglip-kernel; dense losses would need 100 GB
ERRORS_AT, OPTIONS_AT = 4096, 16384
# other launch options than those in use, which compiling alone cannot rank: SIZE, warps, stages
CHOICES = {
    "LOADED": (torch.bfloat16, ((64, 2, 1), (64, 4, 1), (64, 8, 1), (32, 2, 1))),
    "OWN": (torch.float32, ((128, 8, 3), (64, 4, 3), (64, 8, 3), (128, 16, 3))),
}
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
Loss = Callable[[Tensor, Tensor], Tensor]


def ours(impl: str) -> Loss:
    scale = torch.tensor(SCALE, device=DEVICE)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        kernel, ids = Gaussian(SIGMA), torch.arange(len(x), device=x.device)
        op = dispatch.implementation(impl, x, y, kernel)
        nce, between = op.fused(x, y, scale, RowInfo(ids, ids), kernel)
        total: Tensor = nce + op.log_kernel_mean(x, None, kernel) + op.log_kernel_mean(y, None, kernel) - 2 * between
        return total

    return loss


def dense(x: Tensor, y: Tensor) -> Tensor:
    """Autograd over N x N matrices, with x y^T shared."""
    g, target = 1 / SIGMA**2, torch.arange(len(x), device=x.device)
    cross = (x @ y.T).to(torch.promote_types(x.dtype, torch.float32))
    nce = (cross_entropy(SCALE * cross, target) + cross_entropy(SCALE * cross.T, target)) / 2

    def log_sum(products: Tensor) -> Tensor:
        wide = products.to(cross.dtype)
        return torch.logsumexp((g * wide - g).flatten(), dim=0)

    return nce + log_sum(x @ x.T) + log_sum(y @ y.T) - 2 * log_sum(cross)


def siglip(x: Tensor, y: Tensor) -> Tensor:
    """The sigmoid loss of the package siglip-kernel."""
    log_scale, bias = torch.tensor(SCALE, device=x.device).log(), torch.tensor(-10.0, device=x.device)
    value: Tensor = importlib.import_module("siglip_kernel").fused_siglip_loss(x, y, log_scale, bias)
    return value


def clouds(rows: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit rows with a modality gap and correlated pairs."""
    g = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(rows, dim, generator=g, device=DEVICE)
    y = 0.5 * x + torch.randn(rows, dim, generator=g, device=DEVICE) + 0.3
    x, y = (normalize(side, dim=1).to(dtype).requires_grad_() for side in (x, y))
    return x, y


def milliseconds(step: Callable[[], Any]) -> list[float]:
    """Time single steps: three for warm-up, then for about 0.2 s. Without a GPU: one step."""
    if not ON_GPU:
        start_s = time.perf_counter()
        step()
        return [1000 * (time.perf_counter() - start_s)]
    times: list[float] = []
    for _ in range(3):
        step()
    while len(times) < 5 or (sum(times) < 200 and len(times) < 50):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        step()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that replays the step from a CUDA graph; without a GPU, the step."""
    if not ON_GPU:
        return step
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


class Run:
    """The measurements of one run, written to a file after each group."""

    def __init__(self, path: Path, seconds: float, compiler: str) -> None:
        self.path, self.compiler = path, compiler
        self.end = time.monotonic() + seconds
        self.records: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        self.launch_options: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.failed: list[str] = []

    def attempt(self, into: list[dict[str, Any]], name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Add a measurement, unless time is up; an error does not end the run."""
        if time.monotonic() > self.end:
            self.skipped.append(name)
            return
        try:
            into.append(measure())
        except Exception as error:  # whatever a compiler or driver raises: the other measurements are still wanted
            self.failed.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            print("FAILED", self.failed[-1], file=sys.stderr, flush=True)
            return
        found = into[-1]
        spent = f"{found['median_ms']:.3f} ms" if "median_ms" in found else found.get("gradient_relative", "no memory")
        print(name, spent, found.get("peak_mb", ""), flush=True)

    def time(self, name: str, loss: Loss, at: tuple[int, int, torch.dtype], *, graph: bool = False) -> None:
        word = str(at[2]).removeprefix("torch.")
        self.attempt(self.records, f"{at[0]} {at[1]} {word} {name}", lambda: measured(name, loss, at, graph=graph))

    def at_size(self, rows: int, dim: int) -> None:
        self.attempt(self.records, f"{rows} {dim} products alone", lambda: floor(rows, dim))
        loss = ours("triton")
        for dtype in (torch.bfloat16, torch.float32):
            at = rows, dim, dtype
            self.time("csaligner triton", loss, at)
            self.time("csaligner triton, CUDA graph", loss, at, graph=True)
            self.time("dense autograd", dense, at)
        self.write()

    def compiled(self, rows: int, dim: int) -> None:
        for name, function in (("dense", dense), ("csaligner triton", ours("triton"))):
            torch.compiler.reset()
            compiled = torch.compile(function, dynamic=False, fullgraph=True, backend=self.compiler)
            self.time(f"torch.compile of {name}", compiled, (rows, dim, torch.bfloat16))
        self.write()

    def beside_siglip(self, rows: int, dim: int) -> None:
        self.attempt(self.records, f"{rows} {dim} products alone", lambda: floor(rows, dim))
        at = rows, dim, torch.bfloat16
        self.time("csaligner triton", ours("triton"), at)
        if find_spec("siglip_kernel") is None:
            self.skipped.append("siglip-kernel: not installed")
        else:
            self.time("siglip-kernel, without D_CS", siglip, at)
        self.write()

    def options(self, rows: int, dim: int) -> None:
        """Time the kernels with other tiles and warps."""
        from csaligner.ops import triton

        for table, (dtype, choices) in CHOICES.items():
            used, by_capability = getattr(triton, table), triton.OWN_BY_CAPABILITY
            triton.OWN_BY_CAPABILITY = {}
            for choice in choices:
                chosen = dict(zip(("SIZE", "num_warps", "num_stages"), choice, strict=True))
                setattr(triton, table, chosen)
                at = rows, dim, dtype
                self.attempt(
                    self.launch_options,
                    f"{rows} {dim} {table} {choice}",
                    lambda at=at, chosen=chosen: measured("csaligner triton", ours("triton"), at) | chosen,  # type: ignore[misc]
                )
            setattr(triton, table, used)
            triton.OWN_BY_CAPABILITY = by_capability
        self.write()

    def write(self) -> None:
        content = {
            "machine": {
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "device": torch.cuda.get_device_name() if ON_GPU else "no GPU: dry run",
                "python": platform.python_version(),
                "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "triton": version_of("triton")},
            },
            "commit": commit(),
            "scale": SCALE,
            "sigma": SIGMA,
            "records": self.records,
            "errors": self.errors,
            "launch_options": self.launch_options,
            "skipped": self.skipped,
            "failed": self.failed,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1) + "\n")


def measured(name: str, loss: Loss, at: tuple[int, int, torch.dtype], *, graph: bool = False) -> dict[str, Any]:
    rows, dim, dtype = at
    x, y = clouds(rows, dim, dtype)
    record = {"implementation": name, "rows": rows, "dim": dim, "dtype": str(dtype).removeprefix("torch.")}

    def step() -> None:
        torch.autograd.grad(loss(x, y), (x, y))

    try:
        step()
        if ON_GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            torch.cuda.synchronize()
            record["peak_mb"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
        times = milliseconds(captured(step) if graph else step)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return record | {"out_of_memory": True}
    return record | {"median_ms": statistics.median(times), "ms": [min(times), max(times)], "rounds": len(times)}


def floor(rows: int, dim: int) -> dict[str, Any]:
    x, y = (side.detach() for side in clouds(rows, dim, torch.bfloat16))
    w = (x @ y.T).contiguous()
    square = statistics.median(milliseconds(lambda: torch.mm(x, y.T)))
    flat = statistics.median(milliseconds(lambda: torch.mm(w, y)))
    return {
        "implementation": "products alone",
        "rows": rows,
        "dim": dim,
        "dtype": "bfloat16",
        "median_ms": 3 * square + 4 * flat,
        "square_ms": square,
        "flat_ms": flat,
    }


def error_of(loss: Loss, truth: Loss, rows: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the error of the value, and the relative error of the gradients, against float64."""
    x, y = clouds(rows, dim, dtype)
    exact = [side.detach().double().requires_grad_() for side in (x, y)]
    wanted, value = truth(*exact), loss(x, y)
    grads, wanted_grads = torch.autograd.grad(value, (x, y)), torch.autograd.grad(wanted, exact)
    relative = [float((a.double() - b).norm() / b.norm()) for a, b in zip(grads, wanted_grads, strict=True)]
    return {"value": abs(value.item() - wanted.item()), "gradient_relative": max(relative)}


def errors(run: Run, rows: int, dim: int) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        word = str(dtype).removeprefix("torch.")
        for name, loss, truth in (
            ("csaligner triton", ours("triton"), ours("reference")),
            ("dense autograd", dense, dense),  # its kernel takes rows for unit rows, which moves gradients along them
        ):
            about = {"implementation": name, "dim": dim, "dtype": word}

            def measure(
                loss: Loss = loss, truth: Loss = truth, about: dict[str, Any] = about, dtype: torch.dtype = dtype
            ) -> dict[str, Any]:
                return about | error_of(loss, truth, rows, dim, dtype)

            run.attempt(run.errors, f"error {dim} {word} {name}", measure)
    run.write()


def version_of(package: str) -> str | None:
    found: str | None = getattr(importlib.import_module(package), "__version__", None) if find_spec(package) else None
    return found


def commit() -> str | None:
    """Return the commit of a checkout without changes; one with changes is marked."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", help="default: depends on the dimensions, see SIZES")
    parser.add_argument("--dims", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=270, help="start no measurement after this time")
    parser.add_argument("--dry-run", action="store_true", help="check every line at small sizes, on a CPU if need be")
    options = parser.parse_args()
    sizes: dict[int, tuple[int, ...]] = {dim: options.sizes or SIZES.get(dim, SIZES[768]) for dim in options.dims}
    shapes, beside, errors_at, options_at, compiler = COMPILED, BESIDE, ERRORS_AT, OPTIONS_AT, "inductor"
    if options.dry_run:
        if not ON_GPU:
            os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
            from csaligner.ops import triton

            triton.BLOCK = 64
        sizes, shapes, beside = {16: (64,)}, ((64, 16),), (64, 24)
        errors_at = options_at = 64
        compiler = "aot_eager"
    elif not ON_GPU:
        print("gpu: no CUDA device found; run this on a machine with a GPU, or with --dry-run", file=sys.stderr)
        return 1
    run = Run(options.out, options.seconds, compiler)
    for dim in sizes:
        errors(run, errors_at, dim)
    for dim, every in sizes.items():
        for rows in every:
            run.at_size(rows, dim)
    run.options(options_at, next(iter(sizes)))
    run.beside_siglip(*beside)
    for shape in shapes:
        run.compiled(*shape)
    print(f"{len(run.records)} measurements, {len(run.failed)} failed, skipped: {run.skipped or 'none'}")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
