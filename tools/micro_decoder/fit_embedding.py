"""Fit the projection of `bundled:efficientnet-lite0-layout` on training drawings: principal directions part by part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from csaligner.encoders.layout_features import PARTS, Features, Projection

DIMS = {"pooled": 640, "map": 256, "fine": 256, "colour": 128}
SHARES = {"pooled": 960.0, "map": 160.0, "fine": 80.0, "colour": 80.0}  # of the mean squared length, 1280 in all
CHANNELS = {"map": 8, "fine": 6}


def fit(found: Features, weights: Tensor) -> Projection:
    """weights: (N,), what each image counts. Means and directions are rounded to halves, as they are stored."""
    tensors: dict[str, Tensor] = {}
    for name, count in CHANNELS.items():
        rows = getattr(found, name).permute(0, 2, 3, 1)
        every = weights[:, None].expand(-1, rows.shape[1] * rows.shape[2]).flatten()
        mean, axes = principal(rows.flatten(0, 2), every, count)
        tensors |= {f"{name}_channel_mean": mean, f"{name}_channel_axes": axes}
    for name in PARTS:
        x = Projection(tensors).reduced(name, getattr(found, name))
        mean, axes = principal(x, weights, DIMS[name])
        energy = _mean(((x - mean) @ axes).square().sum(dim=1), weights)
        whole = _mean((x - mean).square().sum(dim=1), weights)
        tensors |= {f"{name}_mean": mean, f"{name}_axes": axes, f"{name}_scale": (SHARES[name] / energy).sqrt()}
        print(f"{name}: {axes.shape[1]} of {x.shape[1]} dimensions hold {float(energy / whole):.3f}", flush=True)
    return Projection(tensors)


def principal(x: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean (d,) and leading principal directions (d, count), each signed so that its largest entry is positive."""
    share = (weights / weights.sum())[:, None]
    mean = (x * share).sum(dim=0)
    centred = (x - mean) * share.sqrt()
    _, axes = torch.linalg.eigh((centred.T @ centred).double().cpu())
    axes = axes.flip(1)[:, :count]
    signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    return mean.half().float(), (axes * signs).to(x.device).half().float()


def save(projection: Projection, path: Path, base: Mapping[str, str]) -> None:
    """base: id and fingerprint of the encoder that the features come from."""
    stored = {n: (t if n.endswith("_scale") else t.half()).cpu().contiguous() for n, t in projection.tensors.items()}
    save_file(stored, path, metadata=dict(base))


def _mean(x: Tensor, weights: Tensor) -> Tensor:
    return (x * weights).sum() / weights.sum()
