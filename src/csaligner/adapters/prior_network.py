"""The transformer of ECLIPSE's text-to-image prior, and its published checkpoints.

Patel et al., "ECLIPSE: A Resource-Efficient Text-to-Image Prior for Image Generations", CVPR 2024: the prior of unCLIP
as in diffusers' PriorTransformer, without the diffusion time. Names of parameters are those of diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from csaligner.checks import InputError
from csaligner.integrity import ErrorContext, load_tensors
from csaligner.parsing import checked, parse_json

CONTEXT = 77  # context length of CLIP's text encoders
HEAD_DIM = 32
EXTRA = 3  # pooled text, noise, query
OWNER = ErrorContext("start.checkpoint", "download it again")
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNUSED = ("clip_mean", "clip_std")  # of diffusion priors; in the files of ECLIPSE, not used


@dataclass(frozen=True)
class PriorShape:
    """dim_text: of the pooled text; dim_states: of the text encoder's hidden states, None without them; dim: of image
    embeddings; width: of the transformer; heads, layers; context: maximum number of hidden states."""

    dim_text: int
    dim_states: int | None
    dim: int
    width: int = 512
    heads: int = 16
    layers: int = 10
    context: int = CONTEXT


class PriorNetwork(nn.Module):
    """(pooled text, hidden states, noise) -> image embedding (N, dim), one forward pass.

    The sequence is [hidden states (L), pooled text, noise, a learned query], each mapped to `width`, plus learned
    positions: 0 to L - 1 and the last three. `layers` pre-norm blocks with causal attention and GELU follow; the output
    is read at the query. 10 layers of width 512 with 16 heads have 34.2 million parameters for embeddings of 1280
    dimensions (Kandinsky), 33.1 for 768 (Karlo).
    """

    def __init__(self, shape: PriorShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.proj_in = nn.Linear(shape.dim, shape.width)
        self.embedding_proj = nn.Linear(shape.dim_text, shape.width)
        self.encoder_hidden_states_proj = nn.Linear(shape.dim_states, shape.width) if shape.dim_states else None
        self.positional_embedding = nn.Parameter(torch.randn(1, shape.context + EXTRA, shape.width) * 0.02)
        self.prd_embedding = nn.Parameter(torch.randn(1, 1, shape.width) * shape.width**-0.5)
        self.transformer_blocks = nn.ModuleList(_Block(shape.width, shape.heads, dropout) for _ in range(shape.layers))
        self.norm_out = nn.LayerNorm(shape.width)
        self.proj_to_clip_embeddings = nn.Linear(shape.width, shape.dim)

    def forward(self, x: Tensor, states: Tensor | None, mask: Tensor | None, noise: Tensor | None) -> Tensor:
        """Return the embeddings, (N, dim): read at the query. Arguments as in `outputs`."""
        return self.outputs(x, states, mask, noise)[:, -1]

    def outputs(self, x: Tensor, states: Tensor | None, mask: Tensor | None, noise: Tensor | None) -> Tensor:
        """Return the embedding read at every position, (N, L + 3, dim).

        x: (N, dim_text); states: (N, L, dim_states), L <= context, mask: (N, L), True for those to attend to; noise:
        (N, dim), None: zeros."""
        n = len(x)
        slot = x.new_zeros(n, self.shape.dim) if noise is None else noise
        parts = [self.embedding_proj(x)[:, None], self.proj_in(slot)[:, None], self.prd_embedding.expand(n, -1, -1)]
        positions = [self.positional_embedding[:, self.shape.context :]]
        seen = torch.ones(n, EXTRA, dtype=torch.bool, device=x.device)
        if states is not None:
            assert mask is not None
            assert self.encoder_hidden_states_proj is not None
            parts.insert(0, self.encoder_hidden_states_proj(states.masked_fill(~mask[..., None], 0)))
            positions.insert(0, self.positional_embedding[:, : states.shape[1]])
            seen = torch.cat([mask, seen], dim=1)
        h = torch.cat(parts, dim=1) + torch.cat(positions, dim=1)
        allowed = causal_mask(seen)
        for block in self.transformer_blocks:
            h = block(h, allowed)
        found: Tensor = self.proj_to_clip_embeddings(self.norm_out(h))
        return found


class _Block(nn.Module):
    """diffusers' BasicTransformerBlock without cross-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn1 = nn.ModuleDict({name: nn.Linear(width, width) for name in ("to_q", "to_k", "to_v")})
        self.attn1["to_out"] = nn.ModuleList([nn.Linear(width, width)])
        self.ff = nn.ModuleDict({"net": _net(width)})
        self.heads, self.dropout = heads, nn.Dropout(dropout)

    def forward(self, h: Tensor, allowed: Tensor) -> Tensor:
        z = self.norm1(h)
        q, k, v = (
            self.attn1[name](z).unflatten(2, (self.heads, -1)).transpose(1, 2) for name in ("to_q", "to_k", "to_v")
        )
        attended = scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2)
        h = h + self.dropout(self.attn1["to_out"][0](attended))  # type: ignore[index]
        first, last = self.ff["net"][0]["proj"], self.ff["net"][2]  # type: ignore[index]
        mixed: Tensor = h + self.dropout(last(gelu(first(self.norm3(h)))))
        return mixed


def _net(width: int) -> nn.ModuleList:
    first = nn.ModuleDict({"proj": nn.Linear(width, 4 * width)})
    return nn.ModuleList([first, nn.Identity(), nn.Linear(4 * width, width)])


def causal_mask(seen: Tensor) -> Tensor:
    """Return (N, 1, S, S), True if position i attends to position j: j <= i and j is not masked, or j = i.

    seen: (N, S)."""
    length = seen.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=seen.device)
    return ((before & seen[:, None, :]) | itself)[:, None]


class _Config(BaseModel):
    """config.json of a published prior; None: absent, the default of diffusers."""

    class_name: Annotated[Literal["PriorTransformer"], Field(alias="_class_name")]
    num_attention_heads: Annotated[int, Field(ge=1)]
    attention_head_dim: Annotated[int, Field(ge=1)]
    num_layers: Annotated[int, Field(ge=1)]
    embedding_dim: Annotated[int, Field(ge=1)]
    num_embeddings: Annotated[int, Field(ge=1)] = CONTEXT
    additional_embeddings: Literal[3]
    added_emb_type: Literal["prd"] = "prd"
    encoder_hid_proj_type: Literal["linear"] = "linear"
    norm_in_type: None = None
    embedding_proj_norm_type: None = None
    embedding_proj_dim: int | None = None
    clip_embed_dim: int | None = None

    @property
    def shape(self) -> PriorShape:
        dim, width = self.embedding_dim, self.num_attention_heads * self.attention_head_dim
        text, out = self.embedding_proj_dim or dim, self.clip_embed_dim or dim
        if out != dim:
            raise ValueError(f"clip_embed_dim: got {out}, wanted {dim}, the dimension of the noise")
        return PriorShape(text, dim, out, width, self.num_attention_heads, self.num_layers, self.num_embeddings)


def read_checkpoint(folder: Path) -> tuple[PriorShape, Mapping[str, Tensor]]:
    """Read a published ECLIPSE prior: a folder with config.json and diffusion_pytorch_model.safetensors, as diffusers
    writes it. Raises InputError for any other folder and for a diffusion prior, which also needs a time."""
    folder = folder / "prior" if (folder / "prior" / "config.json").is_file() else folder
    if not (folder / "config.json").is_file():
        raise InputError(f"start.checkpoint: {folder} contains no config.json; give the folder of an ECLIPSE prior")
    try:
        value: Any = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        if value.get("additional_embeddings", 4) == 4:
            raise InputError(
                f"start.checkpoint: {folder} is a diffusion prior (it has a slot for the time); give an ECLIPSE prior, "
                "for example the folder of ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior"
            )
        shape = checked(_Config, value).shape
    except InputError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"start.checkpoint: {folder / 'config.json'} is not an ECLIPSE prior's ({reason})") from None
    try:
        tensors = load_tensors(folder / WEIGHTS, OWNER)
    except FileNotFoundError:
        raise InputError(f"start.checkpoint: {folder} contains no {WEIGHTS}; pickled weights are not read") from None
    return shape, {name: t.float() for name, t in tensors.items() if name not in UNUSED}
