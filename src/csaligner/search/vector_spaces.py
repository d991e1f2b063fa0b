"""Vector spaces of an index: aligned, raw and centred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.class_names import ClassNameAdapter
from csaligner.adapters.identity import IdentityAdapter
from csaligner.adapters.linear import LinearAdapter
from csaligner.adapters.mlp import MLPAdapter
from csaligner.types import Modality

from .calibration import MODALITIES
from .lance_table import ALIGNED, RAW, ItemKind, Items

SpaceName = Literal["aligned", "raw", "centred"]
SPACES: tuple[SpaceName, ...] = ("aligned", "raw", "centred")


@dataclass(frozen=True)
class Space:
    """rows[kind]: LanceDB row ids; vectors[kind]: (N, d) unit rows; mean[modality]: subtracted from a query before it
    is normalised (centred only)."""

    rows: Mapping[ItemKind, Tensor]
    vectors: Mapping[ItemKind, Tensor]
    mean: Mapping[Modality, Tensor] | None = None

    def place(self, query: Tensor, modality: Modality) -> Tensor:
        """Map a query (d,) into the space: subtract the mean (centred only), normalise."""
        return normalize(query - self.mean[modality] if self.mean else query, dim=0)

    def nearest(self, query: Tensor, kind: ItemKind, k: int) -> tuple[list[int], Tensor]:
        """Return row ids and cosines of the k nearest items of a kind, best first, by exact search."""
        scores = self.vectors[kind] @ query
        top = scores.topk(min(k, len(scores)))
        return self.rows[kind][top.indices].tolist(), top.values


def load_space(items: Items, name: SpaceName) -> Space:
    """Read all vectors of a space into memory. centred: raw vectors minus the mean of their modality."""
    kinds: tuple[ItemKind, ...] = items.kinds if name == "aligned" else MODALITIES
    found = {kind: items.matrix(kind, ALIGNED if name == "aligned" else RAW) for kind in kinds}
    rows = {kind: matrix.rows for kind, matrix in found.items()}
    vectors = {kind: matrix.vectors for kind, matrix in found.items()}
    if name == "aligned":
        return Space(rows, vectors)
    if name == "raw":
        return Space(rows, {m: normalize(v, dim=1) for m, v in vectors.items()})
    mean = {m: vectors[m].mean(dim=0) if len(vectors[m]) else torch.zeros(vectors[m].shape[1]) for m in MODALITIES}
    return Space(rows, {m: normalize(vectors[m] - mean[m], dim=1) for m in MODALITIES}, mean)


def raw_dim(model: Aligner) -> int | None:
    """Return the dimension of raw vectors; None if images and texts have no common raw space."""
    if model.config.dim_image == model.config.dim_text:
        return model.config.dim_image
    starts = (_start(model.image_adapter), _start(model.text_adapter))
    return model.config.dim if all(isinstance(start, IdentityAdapter | LinearAdapter) for start in starts) else None


@torch.inference_mode()
def raw_vectors(model: Aligner, modality: Modality, features: Tensor) -> Tensor:
    """Map encoder features (N, d_in) to vectors before alignment (N, raw_dim).

    If the encoders have equal dimensions: x / |x|. Otherwise (x / |x|) @ map, with the map of the adapter's untrained
    start (without subtraction of its mean).
    """
    unit = normalize(features, dim=1)
    if model.config.dim_image == model.config.dim_text:
        return unit
    adapter = model.image_adapter if modality == "image" else model.text_adapter
    first = _start(adapter)
    return unit @ first.map if isinstance(first, LinearAdapter) else unit


def _start(adapter: nn.Module) -> nn.Module:
    if isinstance(adapter, ClassNameAdapter):
        adapter = adapter.drawings
    return adapter.start if isinstance(adapter, MLPAdapter) else adapter
