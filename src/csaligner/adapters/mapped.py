"""Training of MLP adapters on rows that their fixed starts have mapped once, before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, normalize

from .aligner import CHUNK, Aligner
from .linear import LinearAdapter
from .mlp import MLPAdapter

LARGEST = 2**28  # entries of the mapped rows of a modality, 1 GiB; above, starts are applied in each step


class MappedAligner(nn.Module):
    """The aligner, as a function of rows that `map_rows` returned. It has the aligner's parameters.

    z = (x / |x| - m) @ map + (m - mean) @ map + offset, where the first product, with the mean m at construction, is a
    constant: the map of an MLP adapter is fixed. Adapters of other kinds get the features themselves.
    """

    def __init__(self, aligner: Aligner) -> None:
        super().__init__()
        self.aligner = aligner
        self._means = [
            adapter.start.mean.detach().clone() if _is_mapped(adapter) else None for adapter in self._adapters
        ]

    @classmethod
    def saves_time(cls, aligner: Aligner, *sides: Tensor | None) -> bool:
        """Whether an adapter has a fixed map and the mapped rows of these features fit into memory."""
        small = all(x is None or len(x) * aligner.config.dim <= LARGEST for x in sides)
        return small and any(_is_mapped(adapter) for adapter in (aligner.image_adapter, aligner.text_adapter))

    @property
    def log_logit_scale(self) -> nn.Parameter:
        return self.aligner.log_logit_scale

    @property
    def _adapters(self) -> tuple[Any, Any]:
        return self.aligner.image_adapter, self.aligner.text_adapter

    @torch.no_grad()
    def map_rows(self, side: int, x: Tensor | None, *, reuse: bool = False) -> Tensor | None:
        """Return the rows that forward takes for the features x (n, d) of the images (side 0) or the texts (1).

        reuse: write them over x, if they have its shape."""
        adapter, mean = self._adapters[side], self._means[side]
        if x is None or mean is None:
            return x
        matrix = adapter.start.map
        shape, dtype = (len(x), matrix.shape[1]), matrix.dtype
        over = reuse and x.shape == shape and x.dtype == dtype
        mapped = x if over else torch.empty(shape, dtype=dtype, device=x.device)
        for rows, part in zip(torch.split(mapped, CHUNK), torch.split(x, CHUNK), strict=True):
            torch.mm(normalize(part.float(), dim=1).sub_(mean), matrix, out=rows)
        return mapped

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for adapter, mean, rows in zip(self._adapters, self._means, (image, text), strict=True):
            if mean is None:
                found.append(adapter(rows))
            else:
                start: LinearAdapter = adapter.start
                shift = (mean.to(rows.device) - start.mean) @ start.map + start.offset
                found.append(_refined(adapter, rows, shift))
        return unit_rows(found[0]), unit_rows(found[1])

    def save(self, folder: Path) -> None:
        self.aligner.save(folder)


def _is_mapped(adapter: nn.Module) -> bool:
    """Whether the adapter is an MLP whose map is fixed, without a fixed target modality."""
    return isinstance(adapter, MLPAdapter) and adapter.start.log_spread is None and not adapter.start.map.requires_grad


def _refined(adapter: MLPAdapter, rows: Tensor, shift: Tensor) -> Tensor:
    """Return adapter.refine(rows + shift), (n, d), for rows that need no gradient."""
    if adapter.training and adapter.dropout > 0:
        return adapter.refine(rows + shift)
    shifts: tuple[Tensor, ...] = (shift,)
    for block in adapter.blocks:
        assert isinstance(block, nn.Sequential)
        first, *_, last = block
        rows = _Block.apply(rows, *shifts, first.weight, first.bias, last.weight, last.bias)  # type: ignore[no-untyped-call]
        shifts = ()
    return rows + shift if shifts else rows


class _Block(torch.autograd.Function):
    """z + W' gelu(W z + b) + b' with z = rows + shift. Where the rows need no gradient, that of the shift, a sum over
    rows, costs a product with a vector instead of one with all rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *inputs: Tensor) -> Tensor:
        *shift, w, b, v, c = inputs
        z = rows + shift[0] if shift else rows
        h = torch.addmm(b, z, w.T)
        a = gelu(h)
        ctx.save_for_backward(z, h, a, w, v)
        ctx.shifted = bool(shift)
        return torch.addmm(z, a, v.T).add_(c)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, h, a, w, v = ctx.saved_tensors
        grad_c = grad.sum(dim=0)
        grad_h = torch.ops.aten.gelu_backward(grad @ v, h)
        grad_b = grad_h.sum(dim=0)
        grad_rows = torch.addmm(grad, grad_h, w) if ctx.needs_input_grad[0] else None
        grad_shift = (torch.addmv(grad_c, w.T, grad_b),) if ctx.shifted else ()
        return grad_rows, *grad_shift, grad_h.T @ z, grad_b, grad.T @ a, grad_c


def unit_rows(x: Tensor) -> Tensor:
    """Return x / |x| by rows as torch.nn.functional.normalize does, with a gradient in three passes over the rows.

    No second derivative."""
    result: Tensor = _UnitRows.apply(x)  # type: ignore[no-untyped-call]
    return result


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(1e-12)
        y: Tensor = x / length
        ctx.save_for_backward(y, length)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y, length = ctx.saved_tensors
        found: Tensor = torch.addcmul(grad, y, torch.linalg.vecdot(y, grad)[:, None], value=-1) / length
        return found
