"""Transformer adapter: a text-to-image prior for unCLIP decoders without diffusion, one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csaligner.checks import InputError
from csaligner.config import AdapterConfig

from .linear import LinearAdapter
from .start import Affine

HEAD_DIM = 64
MAX_TOKENS = 77  # context length of CLIP's text encoders


class PriorAdapter(nn.Module):
    """x -> start(x) + out(T(tokens, x, query)), (N, d_in) -> (N, d_out).

    T is a causal transformer over the sequence [text tokens, pooled text x, a learned query], read at the query:
    `blocks` pre-norm layers of width `hidden` with 64-d heads and GELU. Follows ECLIPSE (Patel et al., CVPR 2024) and
    CS-Aligner, which remove the diffusion time and noise from unCLIP's prior; 10 layers of width 512 have 33 to 34
    million parameters. The last layer starts at zero, so a new adapter computes its closed-form start, whose map
    stays fixed.
    """

    def __init__(self, start: Affine, config: AdapterConfig) -> None:
        super().__init__()
        width, (dim_in, dim_out) = config.hidden, (len(start.mean), len(start.offset))
        self.start = LinearAdapter(start, config)
        self.start.map.requires_grad_(False)
        self.pooled_in = nn.Linear(dim_in, width)
        self.tokens_in = nn.Linear(dim_in, width)
        self.query = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(MAX_TOKENS + 2, width) * 0.02)
        self.layers = nn.ModuleList(_Layer(width, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim_out)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x: (N, d_in) pooled features. tokens: (N, L, d_in) states of the text encoder, L <= 77; mask: (N, L), True
        for tokens to attend to."""
        z: Tensor = self.start(x)
        scale = x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True).clamp_min(1e-6)  # unit variance, as inside T
        sequence = [self.pooled_in(x * scale)[:, None], self.query.expand(len(x), 1, -1)]
        seen = torch.ones(len(x), 2, dtype=torch.bool, device=x.device)
        if tokens is not None:
            _check_tokens(x, tokens)
            seen = torch.cat([_mask(mask, tokens), seen], dim=1)
            sequence.insert(0, self.tokens_in(tokens.masked_fill(~seen[:, :-2, None], 0) * scale[:, None]))
        h = torch.cat(sequence, dim=1)
        h = h + self.positions[-h.shape[1] :]
        allowed = _causal(seen)
        for layer in self.layers:
            h = layer(h, allowed)
        correction: Tensor = self.out(self.norm(h[:, -1]))
        return z + correction


class _Layer(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_DIM)
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, allowed: Tensor) -> Tensor:
        n, length, width = h.shape
        q, k, v = self.qkv(self.norm_attention(h)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        h = h + self.dropout(self.merge(attended.transpose(1, 2).reshape(n, length, width)))
        mixed: Tensor = h + self.dropout(self.mlp(self.norm_mlp(h)))
        return mixed


def _causal(seen: Tensor) -> Tensor:
    """Return (N, 1, S, S), True if position i attends to position j: j <= i and j is not masked, or j = i."""
    length = seen.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=seen.device)
    return ((before & seen[:, None, :]) | itself)[:, None]


def _mask(mask: Tensor | None, tokens: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if mask.shape != tokens.shape[:2]:
        raise InputError(f"mask: got shape {tuple(mask.shape)}, wanted {tuple(tokens.shape[:2])}, one entry per token")
    return mask.bool()


def _check_tokens(x: Tensor, tokens: Tensor) -> None:
    wanted = (len(x), tokens.shape[1] if tokens.ndim > 1 else 0, x.shape[1])
    if tuple(tokens.shape) != wanted or tokens.shape[1] > MAX_TOKENS:
        raise InputError(
            f"tokens: got shape {tuple(tokens.shape)}, wanted (texts, at most {MAX_TOKENS} tokens, dimensions) "
            f"= ({len(x)}, L, {x.shape[1]})"
        )
