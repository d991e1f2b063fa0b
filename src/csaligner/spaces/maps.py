"""Affine maps of a new model's vectors onto an old model's space, fitted to items embedded by both.

Rows are scaled to unit length; m_x, m_y are the means and S_x, S_xy the covariances of the pairs, x new and y old, and
every map is x -> (x / |x| - m_x) M + c m_y:

- procrustes: M = U V' of S_xy = U S V', c = 1 (Schoenemann 1966); for different dimensions, M keeps the lengths of the
  min(d, e) leading directions.
- linear: ridge regression, M = (S_x + s I)^-1 S_xy with s = tr(S_x)/d / sqrt(N), c = 1.
- direction w: M = (1 - w) U V' + w (ridge scaled to the spread of y), c = 0. The old mean in a query adds a term that
  is the same for every query and so favours the same rows; without it the directions alone decide.
- balanced: M = U V' of the ridge map, c = 0: all directions that the regression finds with the same weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner, AlignerConfig
from csaligner.adapters.start import Affine
from csaligner.config import AdapterConfig

PROCRUSTES, LINEAR = "procrustes", "linear"
WEIGHTS = (0.0, 0.25, 0.5)
PRIOR = "direction 0"
CANDIDATES = (PROCRUSTES, LINEAR, *(f"direction {w:g}" for w in WEIGHTS), "balanced")


def fit_maps(new: Tensor, old: Tensor) -> Mapping[str, Affine]:
    """Return every candidate, fitted to pairs. new: (N, d); old: (N, e)."""
    x, y = normalize(new.double(), dim=1), normalize(old.double(), dim=1)
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x0, y0 = x - mean_x, y - mean_y
    cov, cross = x0.T @ x0 / len(x), x0.T @ y0 / len(x)
    rotation = _polar(cross)
    ridge_size = cov.diagonal().mean() / len(x) ** 0.5
    ridge = torch.linalg.solve(cov + ridge_size.clamp_min(1e-12) * torch.eye(len(cov), dtype=cov.dtype), cross)
    spread = y0.square().sum(dim=1).mean().sqrt()
    scaled = ridge * spread / (ridge * (cov @ ridge)).sum().clamp_min(1e-24).sqrt()
    zero = torch.zeros_like(mean_y)
    maps = {PROCRUSTES: (rotation, mean_y), LINEAR: (ridge, mean_y)}
    maps |= {f"direction {w:g}": ((1 - w) * rotation + w * scaled, zero) for w in WEIGHTS}
    maps["balanced"] = (_polar(ridge), zero)
    return {name: Affine(mean_x.float(), m.float(), offset.float()) for name, (m, offset) in maps.items()}


def query_aligner(start: Affine, dims: tuple[int, int]) -> Aligner:
    """Return the aligner of a map of a new model's vectors ("text") onto an old model's ("image"), which stay as they
    are. dims: of the new and the old vectors."""
    config = AlignerConfig(
        dim_image=dims[1],
        dim_text=dims[0],
        dim=dims[1],
        image_adapter=AdapterConfig(name="identity"),
        text_adapter=AdapterConfig(name="linear"),
    )
    return Aligner(config, (Affine.identity(dims[1]), start)).eval()


def _polar(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    polar: Tensor = u @ vh
    return polar


@dataclass(frozen=True)
class Kept:
    """Search of the old index with mapped new queries, per query, float64.

    hit1, hit10: whether the query's own item is the first, among the first 10. neighbours: fraction of the 10 nearest
    items after full re-embedding (new queries, new index) that are among the 10 nearest, the item itself excluded.
    """

    hit1: Tensor
    hit10: Tensor
    neighbours: Tensor

    @property
    def score(self) -> float:
        """The mean of all three, by which candidates are chosen."""
        return float((self.hit1 + self.hit10 + self.neighbours).mean() / 3)


def kept(queries: Tensor, index: Tensor, own: Tensor, truth: Tensor) -> Kept:
    """queries: (Q, e) and index: (N, e), unit rows; own: (Q,) row of each query's item; truth: (Q, k) rows."""
    k = truth.shape[1]
    first, hits, others = [], [], []
    for q, row, wanted in zip(*(torch.split(each, 512) for each in (queries, own, truth)), strict=True):
        scores = q @ index.T
        top = scores.topk(min(10, len(index)), dim=1).indices
        first.append((top[:, 0] == row).double())
        hits.append((top == row[:, None]).any(dim=1).double())
        scores[torch.arange(len(q)), row] = -torch.inf
        near = scores.topk(k, dim=1).indices
        others.append((wanted[:, :, None] == near[:, None, :]).any(dim=2).double().mean(dim=1))
    return Kept(torch.cat(first), torch.cat(hits), torch.cat(others))


def neighbours(queries: Tensor, index: Tensor, own: Tensor, k: int = 10) -> Tensor:
    """(Q, k) nearest rows of each query except its own item; unit rows."""
    found = []
    for q, row in zip(torch.split(queries, 512), torch.split(own, 512), strict=True):
        scores = q @ index.T
        scores[torch.arange(len(q)), row] = -torch.inf
        found.append(scores.topk(min(k, len(index) - 1), dim=1).indices)
    return torch.cat(found)
