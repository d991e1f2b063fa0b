"""Time and memory of the token-level divergence and its gradient, against batched autograd.

    python benchmarks/token_loss.py --out benchmarks/results/token.json

B pairs of 197 image tokens and 8 to 77 text tokens in 512 dimensions. Times and memory as in loss.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe, peak_rss_mb, write
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.losses.token import token_cauchy_schwarz

SIGMA, IMAGE_TOKENS, TEXT_TOKENS, DIM = 0.5, 197, 77, 512
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs(pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return image tokens, text tokens (unit rows, with gradients) and the mask of the text tokens."""
    g = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(pairs, IMAGE_TOKENS, DIM, generator=g), dim=2).requires_grad_()
    y = normalize(torch.randn(pairs, TEXT_TOKENS, DIM, generator=g), dim=2).requires_grad_()
    lengths = torch.randint(8, TEXT_TOKENS + 1, (pairs, 1), generator=g)
    return x, y, torch.arange(TEXT_TOKENS) < lengths


def csaligner(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return token_cauchy_schwarz(x, y, None, mask, bandwidth=SIGMA)


def batched(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """bmm, mask and autograd."""
    g, hide = 1 / SIGMA**2, torch.where(mask, 0.0, -1e30)

    def log_mean(products: Tensor, count: Tensor) -> Tensor:
        return torch.logsumexp((g * products - g).flatten(1), dim=1) - count.log()

    lengths = mask.sum(dim=1)
    within_x = log_mean(torch.bmm(x, x.mT), torch.tensor(IMAGE_TOKENS**2))
    within_y = log_mean(torch.bmm(y, y.mT) + (hide[:, :, None] + hide[:, None]) / g, lengths**2)
    between = log_mean(torch.bmm(x, y.mT) + hide[:, None] / g, IMAGE_TOKENS * lengths)
    return (within_x + within_y - 2 * between).mean()


def looped(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """A Python loop over pairs, autograd."""
    return token_cauchy_schwarz(x, y, None, mask, bandwidth=SIGMA, impl="reference")


LOSSES: dict[str, Loss] = {"csaligner": csaligner, "batched": batched, "looped": looped}


def once(loss: Loss, x: Tensor, y: Tensor, mask: Tensor) -> tuple[float, float]:
    """Return (seconds, value) of one evaluation with its gradient."""
    start = time.perf_counter()
    value = loss(x, y, mask)
    torch.autograd.grad(value, (x, y))
    return time.perf_counter() - start, value.item()


def peak_memory(name: str, pairs: int) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--pairs", str(pairs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def run(sizes: list[int], repeats: int) -> dict[str, Any]:
    records = []
    for pairs in sizes:
        data = inputs(pairs)
        values = {name: once(loss, *data)[1] for name, loss in LOSSES.items()}
        if not all(math.isclose(value, values["csaligner"], rel_tol=1e-5) for value in values.values()):
            raise AssertionError(f"the implementations disagree: {values}")
        seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
        for _ in range(repeats):
            for name, loss in LOSSES.items():
                seconds[name].append(once(loss, *data)[0])
        for name, each in seconds.items():
            record = {
                "implementation": name,
                "pairs": pairs,
                "seconds": [round(value, 4) for value in each],
                "median_seconds": round(statistics.median(each), 4),
                "peak_mb": round(peak_memory(name, pairs), 1),
            }
            records.append(record)
            print(json.dumps(record), file=sys.stderr, flush=True)
    return {"machine": describe(), "records": records}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/token.json"))
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        before = peak_rss_mb()
        once(LOSSES[arguments.memory_of], *inputs(arguments.pairs[0]))
        print(json.dumps(peak_rss_mb() - before))
    else:
        write(arguments.out, run(arguments.pairs, arguments.repeats))


if __name__ == "__main__":
    main()
