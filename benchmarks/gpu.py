"""GPU benchmark of the loss and its gradients against dense autograd, torch.compile and the products alone.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json [--sizes 1024 8192] [--dims 512]

InfoNCE + D_CS with its gradients in both samples. Times: CUDA events after warm-up, median of the rounds.
Memory: torch's peak above the inputs. Errors: gradients against dense float64 of the same formula
on the same inputs, relative in norm.
Floor: the products alone, 14 N^2 d flops, three in the shape of x y^T and four in that of w y, as bfloat16.
Dense autograd in bfloat16 rounds its logits to bfloat16, as it does under autocast.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import datetime, timezone
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
COMPILED = ((8192, 512), (32768, 512))  # each shape is compiled anew
ERRORS_AT = 4096
OPTIONS_AT = 16384
Loss = Callable[[Tensor, Tensor], Tensor]


def ours(impl: str) -> Loss:
    scale = torch.tensor(SCALE, device="cuda")

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


def clouds(rows: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit rows with a modality gap and correlated pairs."""
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(rows, dim, generator=g, device="cuda")
    y = 0.5 * x + torch.randn(rows, dim, generator=g, device="cuda") + 0.3
    x, y = (normalize(side, dim=1).to(dtype).requires_grad_() for side in (x, y))
    return x, y


def milliseconds(step: Callable[[], Any]) -> list[float]:
    """Time single steps: three for warm-up, then for about 0.2 s."""
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


def captured(step: Callable[[], Any]) -> Callable[[], None]:
    """Return a function that replays the step from a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measured(name: str, loss: Loss, rows: int, dim: int, dtype: torch.dtype, *, graph: bool = False) -> dict[str, Any]:
    x, y = clouds(rows, dim, dtype)
    record = {"implementation": name, "rows": rows, "dim": dim, "dtype": str(dtype).removeprefix("torch.")}

    def step() -> None:
        torch.autograd.grad(loss(x, y), (x, y))

    try:
        step()
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


def launch_options(rows: int, dim: int) -> list[dict[str, Any]]:
    """Time the kernels with other tiles and warps than those in use, which compiling alone cannot rank."""
    from csaligner.ops import triton

    found = []
    for dtype, name, choices in (
        (torch.bfloat16, "LOADED", ((64, 2, 1), (64, 4, 1), (64, 8, 1), (32, 2, 1))),
        (torch.float32, "OWN", ((128, 8, 3), (64, 4, 3), (128, 16, 3))),
    ):
        used = getattr(triton, name)
        for choice in choices:
            setattr(triton, name, dict(zip(("SIZE", "num_warps", "num_stages"), choice, strict=True)))
            found.append(measured("csaligner triton", ours("triton"), rows, dim, dtype) | getattr(triton, name))
        setattr(triton, name, used)
    return found


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


def errors(dim: int) -> list[dict[str, Any]]:
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        x, y = clouds(ERRORS_AT, dim, dtype)
        exact = [side.detach().double().requires_grad_() for side in (x, y)]
        for name, loss, truth in (
            ("csaligner triton", ours("triton"), ours("reference")),
            ("dense autograd", dense, dense),  # its kernel takes rows for unit rows, which moves gradients along them
        ):
            wanted = truth(*exact)
            wanted_grads = torch.autograd.grad(wanted, exact)
            value = loss(x, y)
            grads = torch.autograd.grad(value, (x, y))
            relative = [float((a.double() - b).norm() / b.norm()) for a, b in zip(grads, wanted_grads, strict=True)]
            word = str(dtype).removeprefix("torch.")
            found.append(
                {"implementation": name, "dim": dim, "dtype": word, "value": abs(value.item() - wanted.item())}
                | {"gradient_relative": max(relative)}
            )
    return found


def write(
    path: Path, records: list[dict[str, Any]], found: list[dict[str, Any]], options: list[dict[str, Any]]
) -> None:
    content = {
        "machine": {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": torch.cuda.get_device_name(),
            "python": platform.python_version(),
            "versions": {"torch": torch.__version__, "cuda": torch.version.cuda},
        },
        "scale": SCALE,
        "sigma": SIGMA,
        "records": records,
        "errors": found,
        "launch_options": options,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", help="default: depends on the dimensions, see SIZES")
    parser.add_argument("--dims", type=int, nargs="+", default=list(SIZES))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu: no CUDA device found; run this on a machine with a GPU", file=sys.stderr)
        return 1
    records: list[dict[str, Any]] = []
    for dim in options.dims:
        for rows in options.sizes or SIZES.get(dim, SIZES[768]):
            for dtype in (torch.bfloat16, torch.float32):
                loss = ours("triton")
                records.append(measured("csaligner triton", loss, rows, dim, dtype))
                records.append(measured("csaligner triton, CUDA graph", loss, rows, dim, dtype, graph=True))
                records.append(measured("dense autograd", dense, rows, dim, dtype))
            if (rows, dim) in COMPILED:
                torch.compiler.reset()
                compiled = torch.compile(dense, dynamic=False)
                records.append(measured("torch.compile of dense", compiled, rows, dim, torch.bfloat16))
            records.append(floor(rows, dim))
            write(options.out, records, [], [])
            for r in records[-8:]:
                if (r["rows"], r["dim"]) == (rows, dim):
                    spent = f"{r['median_ms']:.3f} ms" if "median_ms" in r else "out of memory"
                    print(rows, dim, r["dtype"], r["implementation"], spent, r.get("peak_mb"), flush=True)
    launches = launch_options(OPTIONS_AT, options.dims[0])
    write(options.out, records, [e for dim in options.dims for e in errors(dim)], launches)
    return 0


if __name__ == "__main__":
    sys.exit(main())
