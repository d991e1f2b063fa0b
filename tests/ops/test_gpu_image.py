"""`make gpu` on a CUDA image that has torch, triton, numpy and pytest only, rehearsed without a GPU.

The tests of the kernels and the benchmark run in processes that can import nothing else; kernels run in Triton's
interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]
# torch, triton and pytest, and what they require themselves
IMAGE = {"torch", "torchgen", "functorch", "triton", "numpy", "sympy", "mpmath", "networkx", "jinja2", "markupsafe"}
IMAGE |= {"fsspec", "filelock", "typing_extensions", "setuptools"}
IMAGE |= {"pytest", "py", "pluggy", "iniconfig", "packaging", "pygments"}
ALONE = f"""
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

sys.path.insert(0, {str(ROOT / "src")!r})
allowed = sys.stdlib_module_names | {IMAGE!r} | {{"csaligner", "tests"}}

class Image:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is not None or name in allowed or name.startswith("_"):
            return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Image]
"""


def run_alone(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "CSALIGNER_DRY_RUN": "1",
        "TRITON_INTERPRET": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-c", ALONE + program, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_image_lacks_other_packages() -> None:
    done = run_alone("import pydantic")
    assert "No module named 'pydantic'" in done.stderr


def test_the_tests_of_the_kernels_run() -> None:
    """Collects all; runs one of each kind that an interpreter can run."""
    program = """
import pytest
files = "tests/ops/test_gpu.py", "tests/training/test_gpu.py"
found = pytest.main(["--noconftest", "-m", "gpu", "--collect-only", *files])
sys.exit(found or pytest.main(["--noconftest", "-m", "gpu", files[0], "-k", sys.argv[1]]))
"""
    chosen = (
        "(triton and 7-7-72) or (temperatures and 2.0 and dtype1) or (several and dtype1) or (compiled and default)"
    )
    done = run_alone(program, chosen)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_every_line_of_the_benchmark_runs(tmp_path: Path) -> None:
    program = """
import runpy
sys.argv = ["benchmarks/gpu.py", "--dry-run", "--out", sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = run_alone(program, str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not found["failed"]
    assert found["skipped"] == ["siglip-kernel: not installed"]
    names = {(r["implementation"], r["dtype"]) for r in found["records"]}
    for name in ("csaligner triton", "csaligner triton, CUDA graph", "dense autograd"):
        assert {(name, "bfloat16"), (name, "float32")} <= names
    assert {"torch.compile of dense", "torch.compile of csaligner triton", "products alone"} <= {n for n, _ in names}
    assert {(r["SIZE"], r["num_warps"]) for r in found["launch_options"]} >= {(64, 4), (64, 8)}
    assert found["machine"]["device"]
    assert len(found["errors"]) == 4
