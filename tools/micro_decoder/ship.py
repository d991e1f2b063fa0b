"""Put what train.py wrote into the package: the projection as the encoder's, the decoder's folder as `micro`.

    python tools/micro_decoder/ship.py --trained OUT --assets src/csaligner/assets --card card.md

The moments in the decoder's contract are those of OpenMoji's training emoji.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from csaligner.datasets import open_dataset
from csaligner.datasets.images.load import load_image
from csaligner.datasets.split import item_split
from csaligner.decoders.contract import Contract
from csaligner.decoders.layout import save_layout
from csaligner.decoders.layout_net import LayoutNet, LayoutSizes
from csaligner.encoders.efficientnet_layout import EfficientNetLite0Layout, read_projection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--card", type=Path, required=True)
    args = parser.parse_args()
    path = args.assets / "layout-embedding" / "projection.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((args.trained / "projection.safetensors").read_bytes())
    encoder = EfficientNetLite0Layout(path)
    with safe_open(args.trained / "decoder.safetensors", "pt") as file:
        sizes = json.loads(file.metadata()["sizes"])
    net = LayoutNet(LayoutSizes.read(sizes), read_projection(path)[0])
    net.load_state_dict(load_file(args.trained / "decoder.safetensors"))
    items = [item for item in open_dataset("openmoji").items() if item_split(item) == "train"]
    rows = torch.cat([encoder.encode([encoder.prepare(load_image(item.image))]) for item in items])
    contract = Contract(
        "micro",
        encoder.info.dim,
        encoder_id=encoder.info.id,
        encoder=encoder.info.fingerprint,
        mean=rows.mean(dim=0),
        std=rows.std(dim=0),
        norm=float(rows.norm(dim=1).median()),
        negative=torch.zeros(encoder.info.dim),
    )
    save_layout(net, contract, args.assets / "micro-decoder", args.card.read_text(encoding="utf-8"), path)
    files = [
        f for name in ("layout-embedding", "micro-decoder") for f in (args.assets / name).rglob("*") if f.is_file()
    ]
    print(f"{sum(f.stat().st_size for f in files):,} bytes")


if __name__ == "__main__":
    main()
