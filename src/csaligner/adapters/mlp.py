"""MLP adapter (default): the closed-form start followed by residual blocks initialised as the identity."""

from __future__ import annotations

from torch import Tensor, nn

from csaligner.config import AdapterConfig

from .linear import LinearAdapter
from .start import Affine


class MLPAdapter(nn.Module):
    """x -> z + f(z) with z = LinearAdapter(x) and f = Linear(GELU(Linear(z))), `blocks` times.

    (N, d_in) -> (N, d_out). The last layer of each f starts at zero, so a new adapter computes its start. The
    map of the start stays fixed; its mean, its offset and f are learned. With a fixed target modality, f is applied to
    the directions, before spread and offset.
    """

    def __init__(self, start: Affine, config: AdapterConfig) -> None:
        super().__init__()
        self.start = LinearAdapter(start, config)
        self.start.map.requires_grad_(False)
        self.dropout, dim = config.dropout, len(start.offset)
        self.blocks = nn.ModuleList(_block(dim, config) for _ in range(config.blocks))

    def randomise(self) -> None:
        """Learn the map as well, and give the last layers random weights: training without a start."""
        self.start.map.requires_grad_(True)
        for block in self.blocks:
            assert isinstance(block, nn.Sequential)
            for layer in block:
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        onto = self.start.log_spread is not None
        z = self.refine(self.start.directions(x) if onto else self.start(x))
        return self.start.land(z) if onto else z

    def refine(self, z: Tensor) -> Tensor:
        """Apply the residual blocks."""
        for block in self.blocks:
            z = z + block(z)
        return z


def _block(dim: int, config: AdapterConfig) -> nn.Sequential:
    last = nn.Linear(config.hidden, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim, config.hidden), nn.GELU(), nn.Dropout(config.dropout), last)
