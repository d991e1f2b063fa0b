"""Triton kernels without a GPU: compiled for three architectures, and counted launches and waits of the host.

The launches are those that the operations make on `meta` tensors, which have no values: reading one, as `float(x)`
does, raises an error. Values and gradients are tested in the interpreter by test_triton.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="needs the package triton, which is part of the extra dev on Linux")

HEAVY = bool(os.environ.get("CSALIGNER_HEAVY"))
SCRIPT = Path(__file__).parents[1] / "support" / "compile_kernels.py"
TARGETS = (80, 90, 100)  # A100, H100 and H200, B200
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
TYPES = {**DTYPES, torch.int64: "i64"}
REGISTERS = {4: 192, 8: 128}  # of a thread, by the number of warps; a multiprocessor has 65,536

Launch = dict[str, Any]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Record the launches of the kernels instead of running them."""
    from csaligner.ops import triton, triton_kernels

    made: list[Launch] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name, self.arguments = name, getattr(triton_kernels, name).arg_names

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*values: Any, **flags: Any) -> None:
                made.append(as_launch(self.name, dict(zip(self.arguments, values, strict=False)), flags))

            return launch

    for name in ("sum_kernel", "weight_kernel"):
        monkeypatch.setattr(triton, name, Recorder(name))
    monkeypatch.setattr(triton, "no_autocast", lambda x: contextlib.nullcontext())  # unknown on meta
    return made


def as_launch(name: str, values: dict[str, Any], flags: dict[str, Any]) -> Launch:
    options = {key: flags.pop(key) for key in ("num_warps", "num_stages")}
    signature, divisible = dict.fromkeys(flags, "constexpr"), []
    for position, (key, value) in enumerate(values.items()):
        if isinstance(value, Tensor):
            signature[key] = f"*{TYPES[value.dtype]}"
        else:
            signature[key] = "i32" if isinstance(value, int) else "fp32"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            divisible.append(position)
    order = [*values, *flags]
    signature = {key: signature[key] for key in order}
    return {"kernel": name, "signature": signature, "constants": flags, "divisible": divisible, "options": options}


def loss(rows: int, dtype: torch.dtype, dim: int = 512) -> None:
    """InfoNCE + D_CS and its gradients on meta tensors."""
    from csaligner.ops import triton

    x, y = (torch.empty(rows, dim, dtype=dtype, device="meta") for _ in range(2))
    scale, ids = torch.empty((), device="meta"), torch.empty(rows, dtype=torch.int64, device="meta")
    nce, between, *state = triton.between(x, y, scale, (ids, ids), (None, None), 0.5)
    triton.between_backward((nce, between), scale, tuple(state), (rows, rows), 0.5)
    for side in (x, y):
        triton.within(side, None, 0.5)


def each_alone(dtype: torch.dtype, dim: int) -> None:
    """InfoNCE alone and the kernel mean between two samples alone, with their gradients, on meta tensors."""
    from csaligner.ops import triton

    x, y = (torch.empty(256, dim, dtype=dtype, device="meta") for _ in range(2))
    scale, ids = torch.empty((), device="meta"), torch.empty(256, dtype=torch.int64, device="meta")
    for has, sigma in (((ids, ids), None), (None, 0.5)):
        nce, between, *state = triton.between(x, y, scale, has, (None, None), sigma)
        triton.between_backward((nce, between), scale, tuple(state), (256, 256), sigma)


def usage(launches: list[Launch], cache: Path) -> list[dict[str, int]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(
        command, input=json.dumps(launches), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, int]] = json.loads(done.stdout)
    return found


def distinct(launches: list[Launch]) -> Iterator[Launch]:
    """Yield each launch once, whatever its numbers; a kernel is compiled once for each."""
    yield from {json.dumps(launch, sort_keys=True): launch for launch in launches}.values()


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_without_spills(
    launches: list[Launch], target: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 in every combination of flags; float32 in the largest; with CSALIGNER_HEAVY=1 every dtype in all."""
    from csaligner.ops import triton

    monkeypatch.setattr(triton, "capability", lambda device: target // 10)
    for dtype in DTYPES:
        for dim in (512, 72) if dtype == torch.float32 else (512,):
            loss(256, dtype, dim)
            each_alone(dtype, dim)
    every = [{**launch, "target": target} for launch in distinct(launches)]
    flags = {(e["kernel"], *(e["constants"].get(f) for f in ("NCE", "KERNEL", "WITHIN"))) for e in every}
    assert len(flags) == 7
    if not HEAVY:
        every = [e for e in every if is_bfloat16(e) or (e["constants"]["DIM"] == 512 and has_most_flags(e))]
    for launch, found in zip(every, usage(every, tmp_path), strict=True):
        about = (launch["kernel"], launch["signature"]["points_x"], launch["constants"], found)
        assert found["stack"] == 0, about
        assert found["registers"] <= REGISTERS[launch["options"]["num_warps"]], about


def is_bfloat16(launch: Launch) -> bool:
    return bool(launch["signature"]["points_x"] == "*bf16")


def has_most_flags(launch: Launch) -> bool:
    return bool(launch["constants"]["OWN"] and launch["constants"]["NCE"] and launch["constants"]["KERNEL"])


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.largest = 0  # number of entries of a result

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[function.overloadpacket.__name__] += 1
        found = function(*args, **(kwargs or {}))
        self.largest = max(self.largest, found.numel() if isinstance(found, Tensor) else 0)
        return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "chunks", "most"), [(1024, 1, 340), (8192, 1, 340), (32768, 16, 1300)])
def test_the_host_waits_for_nothing_and_launches_little(
    launches: list[Launch], dtype: torch.dtype, rows: int, chunks: int, most: int
) -> None:
    with Counted() as counted:
        loss(rows, dtype)
    waits = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "_unique2", "masked_select")
    assert not [name for name in waits if counted.calls[name]]
    assert len(launches) == 4 * chunks  # two passes between the samples, one within each
    assert counted.calls.total() <= most


@pytest.mark.usefixtures("launches")
def test_memory_is_linear_in_the_rows() -> None:
    with Counted() as counted:
        loss(2**17, torch.bfloat16, dim=64)
    assert counted.largest <= 2**28  # the products of all rows are 2**34


def test_a_read_value_would_be_found() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.empty((), device="meta"))
