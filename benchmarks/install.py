"""Install and import times of the wheel, and a functional check of every extra.

python benchmarks/install.py --out benchmarks/results/install.json [--extras search,app] [--wheel FILE]

Each extra is installed into a separate virtual environment. torch is linked from the current environment, so no other
build is installed; everything else is installed by pip.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from machine import describe

from csaligner.files import write_json

ROOT = Path(__file__).parents[1]
REPEATS = 7
TORCH = ("torch", "torchgen", "functorch", "torch-*.dist-info")
BASE = "from csaligner import CSAligner; import torch; CSAligner(epochs=1).fit(torch.randn(8, 4), torch.randn(8, 3))"
USES = {
    "bundled": "from csaligner.encoders import open_encoder; from PIL import Image\n"
    "text, image = open_encoder('bundled:all-MiniLM-L6-v2'), open_encoder('bundled:efficientnet-lite0')\n"
    "assert text.encode([text.prepare('a')]).shape == (1, 384)\n"
    "assert image.encode([image.prepare(Image.new('RGB', (9, 9)))]).shape == (1, 1280)\n"
    "from csaligner.datasets import open_dataset; open_dataset('openmoji')",
    "hf": "import peft, datasets, csaligner.encoders.transformers_text, csaligner.adapters.lora\n"
    "from transformers import BertConfig, BertModel; BertModel(BertConfig(hidden_size=12, num_hidden_layers=1))\n"
    "from csaligner.datasets.huggingface import HuggingFace",
    "export": "import onnx, onnxruntime, onnxscript; from pathlib import Path; import csaligner.export",
    "generate": "from csaligner.decoders.decoder import open_decoder; assert open_decoder('micro').side == 32",
    "search": "import lancedb, filelock; from csaligner.search.index import Index; import csaligner.search.build",
    "app": "import uvicorn; from csaligner.app.server import make_app; import csaligner.search.index",
    "ray": "import ray.data; import csaligner.store.ray_runner",
    "compare": "import optuna, sklearn.cluster; import csaligner.comparison.run",
    "docs": "import mkdocs, material, mkdocstrings_handlers.python",
}
USES["all"] = "\n".join(code for name, code in USES.items() if name != "docs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--extras", default=",".join(USES), help="comma-separated; other extras keep their records")
    parser.add_argument("--wheel", type=Path, help="default: build it first")
    options = parser.parse_args()
    wheel = (options.wheel or build_wheel()).resolve()
    content = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"extras": {}}
    content |= {"machine": describe(), "wheel_mb": wheel.stat().st_size / 1e6, "base": measure_base(wheel)}
    write_json(options.out, content)
    for name in filter(None, options.extras.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            python = fresh_environment(Path(folder))
            taken = install(python, f"{wheel}[{name}]")
            run(python, USES[name])
            content["extras"][name] = {"install": taken, "packages": len(packages(python))}
        write_json(options.out, content)
        print(name, content["extras"][name], flush=True)


def build_wheel() -> Path:
    folder = Path(tempfile.mkdtemp())
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def measure_base(wheel: Path) -> dict[str, Any]:
    """Measure pip, `import csaligner` and `import torch` in new processes, without extras."""
    with tempfile.TemporaryDirectory() as folder:
        python = fresh_environment(Path(folder))
        taken = install(python, str(wheel))
        run(python, BASE)
        empty, ours, torch = (import_times(python, code) for code in ("pass", "import csaligner", "import torch"))
        return {"install": taken, "packages": len(packages(python))} | {
            "import_csaligner": ours,
            "import_torch": torch,
            "python_alone": empty,
        }


def fresh_environment(folder: Path) -> Path:
    """Create a virtual environment with only torch linked from this one; return the path of its python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    lent, site = folder / "lent", Path(sysconfig.get_path("purelib"))
    lent.mkdir()
    for pattern in TORCH:
        for path in site.glob(pattern):
            (lent / path.name).symlink_to(path)
    (installed,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (installed / "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    return folder / "venv" / "bin" / "python"


def install(python: Path, what: str) -> dict[str, float]:
    """Return the seconds of pip. Fails if pip installs another torch."""
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    command = [str(python), "-m", "pip", "install", "--quiet", *constraints, what]
    taken = timed(lambda: subprocess.run(command, check=True))
    found = run(python, "import torch; print(torch.__file__)")
    assert "/lent/" in found, f"pip installed another torch: {found}"
    return taken


def packages(python: Path) -> list[str]:
    return run(python, "import importlib.metadata as m; print(*{d.name for d in m.distributions()})").split()


def import_times(python: Path, code: str) -> dict[str, float]:
    """Return medians over new processes, without the first (cold) one."""
    times = [timed(lambda: run(python, code)) for _ in range(REPEATS + 1)][1:]
    return {key: median(t[key] for t in times) for key in times[0]}


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Return wall seconds, and processor seconds of the processes that `work` starts and waits for."""
    before, start = os.times(), time.perf_counter()
    work()
    after, end = os.times(), time.perf_counter()
    own = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": end - start, "cpu_seconds": own}


def run(python: Path, code: str) -> str:
    """Return the standard output of a program; on failure, show its output."""
    with tempfile.TemporaryDirectory() as folder:  # outside the repository
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        sys.exit(f"{code}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
