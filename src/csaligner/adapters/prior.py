"""Transformer adapter: a text-to-image prior for unCLIP decoders without diffusion, one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from csaligner.checks import InputError
from csaligner.config import AdapterConfig
from csaligner.types import TokenSets

from .linear import LinearAdapter
from .prior_network import HEAD_DIM, PriorNetwork, PriorShape, read_checkpoint
from .start import Affine


class PriorAdapter(nn.Module):
    """x -> start(x) + network(hidden states, x, noise), (N, d_in) -> (N, d_out).

    network: the transformer of ECLIPSE (adapters/prior_network.py) with `blocks` layers of width `hidden` and 32-d
    heads, or config.heads of them. Its last layer starts at zero, so a new adapter computes its closed-form start,
    whose map stays fixed. As published (`randomise`, `load_published`) there is no start: the network alone.
    config.states: dimensions of the hidden states of the text encoder; None: the network sees the pooled text alone.
    config.noise: seed of the noise in evaluation, where all rows have the same; in training it is drawn anew; None:
    zeros.
    """

    noise: Tensor | None

    def __init__(self, start: Affine, config: AdapterConfig) -> None:
        super().__init__()
        shape = PriorShape(
            len(start.mean),
            config.states,
            len(start.offset),
            config.hidden,
            config.heads or max(1, config.hidden // HEAD_DIM),
            config.blocks,
        )
        if shape.width % shape.heads:
            raise InputError(f"heads: got {shape.heads}, wanted a divisor of hidden = {shape.width}")
        self.start = LinearAdapter(start, config)
        self.start.map.requires_grad_(False)
        self.network = PriorNetwork(shape, config.dropout)
        nn.init.zeros_(self.network.proj_to_clip_embeddings.weight)
        nn.init.zeros_(self.network.proj_to_clip_embeddings.bias)
        generator = torch.Generator().manual_seed(config.noise or 0)
        noise = None if config.noise is None else torch.randn(shape.dim, generator=generator)
        self.register_buffer("noise", noise, persistent=False)

    @property
    def reads_states(self) -> bool:
        return self.network.shape.dim_states is not None

    def randomise(self) -> None:
        """Remove the start and give the last layer random weights: ECLIPSE's network alone."""
        for parameter in self.start.parameters():
            nn.init.zeros_(parameter)
            parameter.requires_grad_(False)
        self.network.proj_to_clip_embeddings.reset_parameters()

    def load_published(self, folder: Path, mean: Tensor | None = None, scale: Tensor | None = None) -> None:
        """Replace start and weights by those of a published ECLIPSE prior (prior_network.read_checkpoint).

        mean, scale: (d_out,), map its embeddings z to (z - mean) / scale, the space of a standardised fixed side.
        Raises InputError if it has another shape than this adapter.
        """
        self.randomise()
        shape, tensors = read_checkpoint(folder)
        try:
            self.network.load_state_dict(dict(tensors))
        except RuntimeError as error:
            first = str(error).strip().splitlines()[-1].strip()
            raise InputError(f"start.checkpoint: {folder} does not fit ({first[:160]}); wanted {shape}") from None
        last = self.network.proj_to_clip_embeddings
        with torch.no_grad():
            if mean is not None and scale is not None:
                last.bias.copy_((last.bias - mean) / scale)
                last.weight.copy_(last.weight / scale[:, None])

    def forward(
        self, x: Tensor, states: Tensor | None = None, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """x: (N, d_in) pooled features. states: (N, L, d) hidden states of the text encoder, L <= 77; mask: (N, L),
        True for states to attend to, None: all; noise: (N, d_out), None: as configured. Raises InputError."""
        states, mask, noise = self._inputs(x, states, mask, noise)
        z: Tensor = self.start(x) + self.network(x, states, mask, noise)
        return z

    def with_tokens(self, x: Tensor, states: Tensor, mask: Tensor) -> tuple[Tensor, TokenSets]:
        """Return forward(x, states, mask), and the embedding read at each state as the tokens of the text,
        (N, L, d_out), for the token-level term."""
        known, seen, noise = self._inputs(x, states, mask, None)
        z: Tensor = self.start(x)
        found = z[:, None] + self.network.outputs(x, known, seen, noise)
        return found[:, -1], TokenSets(found[:, : states.shape[1]], mask.bool())

    def _inputs(
        self, x: Tensor, states: Tensor | None, mask: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if states is not None:
            mask = self._check(x, states, mask)
            states = states.to(x.dtype)
        elif self.reads_states:
            raise InputError("text: this prior reads hidden states; give them, or embed the data with --tokens")
        if noise is None and self.noise is not None:
            n, dim = len(x), len(self.noise)
            noise = torch.randn(n, dim, device=x.device) if self.training else self.noise.expand(n, -1)
        return states, mask, noise

    def _check(self, x: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
        shape = self.network.shape
        if shape.dim_states is None:
            raise InputError("states: this prior was trained on the pooled text alone; leave them out")
        wanted = (len(x), states.shape[1] if states.ndim > 1 else 0, shape.dim_states)
        if tuple(states.shape) != wanted or states.shape[1] > shape.context:
            raise InputError(
                f"states: got shape {tuple(states.shape)}, wanted (texts, at most {shape.context} states, dimensions) "
                f"= ({len(x)}, L, {shape.dim_states})"
            )
        if mask is None:
            return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        if mask.shape != states.shape[:2]:
            raise InputError(f"mask: got shape {tuple(mask.shape)}, wanted {tuple(states.shape[:2])}, one per state")
        return mask.bool()


def settings_of_checkpoint(folder: Path, config: AdapterConfig) -> AdapterConfig:
    """Return the adapter's config with the shape of a published prior, which was trained with noise."""
    shape = read_checkpoint(folder)[0]
    if shape.context != PriorShape(1, None, 1).context:
        raise InputError(f"start.checkpoint: {folder} reads {shape.context} hidden states, wanted 77")
    found: Mapping[str, int] = {"hidden": shape.width, "heads": shape.heads, "blocks": shape.layers}
    noise = 0 if config.noise is None else config.noise
    return config.model_copy(update=dict(found) | {"states": shape.dim_states, "noise": noise})
