"""Cost of the loss with 100 million pairs on 64 GPUs, on paper: the table of docs/distributed.md.

Times are work divided by rates, without overlap. The rate of bfloat16 products is the measured one of the Triton
implementation (results/gpu.json), rounded to RATE_STEP; the other rates are assumptions.

python benchmarks/cluster_cost.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from table_text import load, table

PAIRS, DIM, GPUS = 100e6, 768, 64
BATCHES = (65_536, 262_144, 1_048_576)
FLOAT32, NETWORK = 50e12, 50e9  # flop/s without TF32; byte/s per GPU
MEASURED_ROWS, RATE_STEP = 32_768, 10e12
CHUNKS, TILES = 3e9, 0.1e9  # bytes: chunk of products and sums of blocks of `gather`; tiles of `ring`
ADAPTER_PRODUCTS = 7  # of DIM x DIM per row, forward and backward


@dataclass(frozen=True)
class Cost:
    """Of one step: seconds of arithmetic and of the network, bytes of memory per GPU. epoch: seconds."""

    arithmetic: float
    network: float
    memory: float
    epoch: float

    @classmethod
    def of(cls, rows: int, arithmetic: float, network: float, memory: float) -> Cost:
        return cls(arithmetic, network, memory, (arithmetic + network) * PAIRS / rows)


def measured_rate() -> float:
    """Return 14 N^2 d / time of the Triton implementation with bfloat16 rows at the largest size, in flop/s."""
    wanted = {"implementation": "csaligner triton", "rows": MEASURED_ROWS, "dim": DIM, "dtype": "bfloat16"}
    found = next(r for r in load("gpu")["records"] if wanted.items() <= r.items())
    rate = 14 * MEASURED_ROWS**2 * DIM / (found["median_ms"] / 1e3)
    return float(round(rate / RATE_STEP) * RATE_STEP)


def gather(rows: int, rate: float) -> Cost:
    """Every rank: 14 N^2 d flops; 4 N d bytes of rows and 8 N d of an all-reduce of gradients, in bfloat16."""
    size = rows * DIM
    return Cost.of(rows, 14 * rows * size / rate, 12 * size / NETWORK, 24 * size + CHUNKS)


def ring(rows: int) -> Cost:
    """A rank: 16 N^2 d / R flops; 5 N d numbers received, 10 n d held, n = N / R, in float32."""
    size = rows * DIM
    return Cost.of(rows, 16 * rows * size / GPUS / FLOAT32, 20 * size / NETWORK, 40 * size / GPUS + TILES)


def cost_table() -> str:
    rate = measured_rate()
    adapters = ADAPTER_PRODUCTS * 2 * DIM**2 * 2 * PAIRS
    flops = f"{adapters:.1e}".replace("e+", "e")
    note = (
        f"Products in bfloat16: {rate / 1e12:.0f} TFLOP/s, the rate of the Triton implementation on an H200 at "
        f"{MEASURED_ROWS:,} rows and d = {DIM}. Adapters: {flops} flops per epoch, "
        f"{_digits(adapters / GPUS / rate, 2)} s on {GPUS} GPUs.\n\n"
    )
    rows = []
    for batch in BATCHES:
        costs = (gather(batch, rate), ring(batch))
        cells = [cell for cost in costs for cell in (_time(cost.arithmetic), _time(cost.network), *_rest(cost))]
        rows.append([f"{batch:,} ({batch // GPUS:,})", *cells])
    first = [f"`gather`: arithmetic, {rate / 1e12:.0f} TFLOP/s", "network", "memory per GPU", "epoch"]
    second = [f"`ring`: arithmetic, {FLOAT32 / 1e12:.0f} TFLOP/s", "network", "memory per GPU", "epoch"]
    return note + table(["N (rows per GPU)", *first, *second], rows)


def _rest(cost: Cost) -> tuple[str, str]:
    return f"{_two(cost.memory / 1e9)} GB", f"{_two(cost.epoch / 60)} min"


def _time(seconds: float) -> str:
    return f"{_two(seconds)} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def _two(value: float) -> str:
    """One decimal below 10, none above."""
    return _digits(value, 0 if value >= 10 else 1)


def _digits(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else f"{value:.{digits}f}"


TABLES: Mapping[str, Callable[[], str]] = {"cluster_cost": cost_table}

if __name__ == "__main__":
    print(cost_table())
