"""Affine adapter; exportable as three arrays."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.config import AdapterConfig

from .start import Affine


class LinearAdapter(nn.Module):
    """x -> (x / |x| - mean) @ map + offset, (N, d_in) -> (N, d_out); mean, map and offset are learned.

    With a fixed target modality (config.onto): x -> spread * u / |u| + offset, u = (x / |x| - mean) @ map, and
    spread = exp(log_spread) is learned as well.
    """

    def __init__(self, start: Affine, config: AdapterConfig) -> None:
        super().__init__()
        self.mean = nn.Parameter(start.mean.clone())
        self.map = nn.Parameter(torch.eye(len(start.mean)) if start.map is None else start.map.clone())
        self.offset = nn.Parameter(start.offset.clone())
        self.log_spread: nn.Parameter | None = None
        if config.onto:
            self.log_spread = nn.Parameter(torch.tensor(1.0 if start.spread is None else start.spread).log())

    def forward(self, x: Tensor) -> Tensor:
        return self.land(self.directions(x))

    def directions(self, x: Tensor) -> Tensor:
        """Return the mapped rows without the offset; unit vectors with a fixed target modality."""
        u = self._mapped(normalize(x, dim=1))
        return u if self.log_spread is None else normalize(u, dim=1)

    def _mapped(self, x: Tensor) -> Tensor:
        """Return (x - mean) @ map. The gradient of the mean goes through a row of zeros, whose gradient is the sum of
        those of the rows: without it, the gradient of each row would be multiplied with the map."""
        if not (torch.is_grad_enabled() and self.mean.requires_grad):
            return (x - self.mean) @ self.map
        mean = self.mean.detach()
        return torch.addmm((mean - self.mean) @ self.map, x - mean, self.map)

    def land(self, u: Tensor) -> Tensor:
        """Add the offset; with a fixed target modality, rows are first scaled to the learned spread."""
        return u + self.offset if self.log_spread is None else self.log_spread.exp() * normalize(u, dim=1) + self.offset
