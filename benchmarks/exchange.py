"""Time and memory of the global loss per rank, gather against ring: value and gradients, float32, gloo.

    python benchmarks/exchange.py [--rows 4096] [--dims 512] [--out benchmarks/results/exchange.json]
    python benchmarks/exchange.py --ranks 4 --rows 4096 8192 16384 --out benchmarks/results/exchange_memory.json

Each rank is a process with one thread. Time is the processor time of the slowest rank, which is robust to other load;
memory is the peak resident memory of a rank above its value before the loss.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import normalize

from csaligner.distributed.gather import gather_ids
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.distributed.processes import rank, world_size
from csaligner.run_folder import provenance

SIZES = (1, 2, 4)
EXCHANGES = ("gather", "ring")


def on_rank(number: int, size: int, folder: str, exchange: str, rows: int, dims: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=size)
    x, y = (_own_rows(rows, dims, side).requires_grad_() for side in range(2))
    loss = CSAlignerLoss(exchange=exchange)
    _step(loss, x[:64].detach().requires_grad_(), y[:64].detach().requires_grad_())  # warm-up
    before, started = machine.peak_rss_mb(), time.process_time()
    total = _step(loss, x, y)
    spent = torch.tensor([[time.process_time() - started, machine.peak_rss_mb() - before, total]], dtype=torch.float64)
    spent = gather_ids(spent)
    if rank() == 0:
        torch.save(spent, Path(folder) / "spent.pt")
    dist.barrier()
    dist.destroy_process_group()


def _own_rows(rows: int, dims: int, side: int) -> Tensor:
    """Return this rank's part of the points, which do not depend on the number of ranks."""
    most = max(SIZES)
    own = torch.arange(most).chunk(world_size())[rank()]
    parts = [torch.randn(rows // most, dims, generator=torch.Generator().manual_seed(2 * int(k) + side)) for k in own]
    return normalize(torch.cat(parts), dim=1)


def _step(loss: CSAlignerLoss, x: Tensor, y: Tensor) -> float:
    total = loss(x, y, 15.0).total
    total.backward()
    return float(total.detach())


def measure(exchange: str, size: int, rows: int, dims: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        spawn(on_rank, (size, folder, exchange, rows, dims), nprocs=size)  # type: ignore[no-untyped-call]
        spent = torch.load(Path(folder) / "spent.pt", weights_only=True)
    record = {"exchange": exchange, "ranks": size, "rows": rows, "dims": dims}
    cpu_seconds, extra_mb = spent[:, :2].max(dim=0).values.tolist()
    return record | {"cpu_seconds": cpu_seconds, "extra_mb": extra_mb, "loss": spent[0, 2].item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[4096])
    parser.add_argument("--ranks", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/exchange.json"))
    options = parser.parse_args()
    records = []
    for rows, size, exchange in itertools.product(options.rows, options.ranks, EXCHANGES):
        records.append(measure(exchange, size, rows, options.dims))
        print(records[-1], flush=True)
    made = {"machine": machine.describe(), "commit": provenance(0)["commit"], "records": records}
    machine.write(options.out, made)


if __name__ == "__main__":
    main()
