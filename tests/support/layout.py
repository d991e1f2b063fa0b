"""A projection of random directions and an untrained layout decoder on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from csaligner.decoders.contract import Contract
from csaligner.decoders.layout import save_layout
from csaligner.decoders.layout_net import LayoutNet, LayoutSizes
from csaligner.encoders.layout_features import COLOUR_GRID, GRID, PARTS, Projection

WIDTHS = {"pooled": 1280, "map": 2 * GRID**2, "fine": 2 * GRID**2, "colour": 3 * COLOUR_GRID**2}
TINY = LayoutSizes(side=16, channels=(8, 8, 8), modulation=16, local=8, pooled_map=2)


def random_projection(dims: Mapping[str, int], seed: int = 0) -> Projection:
    """Orthonormal directions; dims: how many of each part."""
    torch.manual_seed(seed)
    tensors = {}
    for name in PARTS:
        tensors[f"{name}_mean"] = torch.randn(WIDTHS[name]) * 0.1
        tensors[f"{name}_axes"] = torch.linalg.qr(torch.randn(WIDTHS[name], dims[name]))[0]
        tensors[f"{name}_scale"] = torch.tensor(0.7)
    for name, channels in {"map": 40, "fine": 16}.items():
        tensors[f"{name}_channel_mean"] = torch.randn(channels)
        tensors[f"{name}_channel_axes"] = torch.linalg.qr(torch.randn(channels, 2))[0]
    return Projection(tensors)


def write_projection(path: Path, dims: Mapping[str, int], seed: int = 0) -> Path:
    tensors = {name: tensor.contiguous() for name, tensor in random_projection(dims, seed).tensors.items()}
    save_file(tensors, path, metadata={"base": "b", "base_fingerprint": "f"})
    return path


def save_tiny_layout(contract: Contract, folder: Path) -> Path:
    """A decoder folder of 16 x 16 pixels for embeddings of contract.dim >= 4 dimensions."""
    dims = {"pooled": contract.dim - 3, "map": 1, "fine": 1, "colour": 1}
    path = write_projection(folder.parent / "projection.safetensors", dims)
    net = LayoutNet(TINY, random_projection(dims))
    for parameter in net.out.parameters():  # zeros draw the colours alone
        torch.nn.init.normal_(parameter, std=0.3)
    save_layout(net, contract, folder, "A card.\n", path)
    return folder
