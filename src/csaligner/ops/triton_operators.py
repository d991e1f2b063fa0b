"""The Triton implementation as operators of torch.library, which torch.compile and CUDA graphs take as they are.

csaligner::within, csaligner::between and csaligner::between_backward: the compiler sees each as one node with known
shapes, so that code that calls the functions of this module compiles without a graph break. Their implementation,
triton.py, is imported at the first call. They have no second derivative. For a CUDA graph, the scale must be on the
device of the samples.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from . import tiled
from .contrastive import RowInfo
from .kernels import Gaussian
from .tiles import refuse_second_derivative, uncompiled

SCHEMAS = {
    # log kernel mean of x against itself, and its gradient in x
    "within": "(Tensor x, Tensor? weights, float sigma) -> (Tensor, Tensor)",
    # InfoNCE (0 without ids), the log kernel mean of x against y (0 without sigma), the ten tensors of triton.State
    "between": "(Tensor x, Tensor y, Tensor scale, Tensor? ids_x, Tensor? ids_y, Tensor? weights_x, Tensor? weights_y, "
    f"float? sigma) -> ({', '.join(['Tensor'] * 12)})",
    # gradients in x, y and the scale; n, m: their numbers of rows
    "between_backward": "(Tensor grad_nce, Tensor grad_log_mean, Tensor scale, Tensor[] state, SymInt n, SymInt m, "
    "float? sigma) -> (Tensor, Tensor, Tensor)",
}
for _name, _schema in SCHEMAS.items():
    torch.library.define(f"csaligner::{_name}", _schema)

_tiled_log_kernel_mean = uncompiled(tiled.log_kernel_mean)


def log_kernel_mean(
    x: Tensor,
    y: Tensor | None,
    kernel: Gaussian,
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    diagonal: bool = True,
) -> Tensor:
    """See reference.log_kernel_mean; the value is float64 for every dtype of x. diagonal=False uses tiled."""
    if not diagonal:
        return _tiled_log_kernel_mean(x.float(), y, kernel, weights_x, diagonal=False)
    if y is None:
        value: Tensor = torch.ops.csaligner.within.default(x, weights_x, kernel.sigma)[0]
        return value
    return _between(x, y, x.new_ones((), dtype=torch.float32), (None, None, weights_x, weights_y), kernel.sigma)[1]


def info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo) -> Tensor:
    """See reference.info_nce; the value is float64 for every dtype of x."""
    return _between(x, y, scale, (rows.ids_x, rows.ids_y, None, None), None)[0]


def fused(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Gaussian) -> tuple[Tensor, Tensor]:
    """Return reference.info_nce and reference.log_kernel_mean of x against y, from the same products. Both float64."""
    return _between(x, y, scale, (rows.ids_x, rows.ids_y, rows.weights_x, rows.weights_y), kernel.sigma)


def _between(
    x: Tensor, y: Tensor, scale: Tensor, rows: tuple[Tensor | None, ...], sigma: float | None
) -> tuple[Tensor, Tensor]:
    nce, log_mean, *_ = torch.ops.csaligner.between.default(x, y, scale, *rows, sigma)
    return nce, log_mean


def _implementation() -> Any:
    return importlib.import_module("csaligner.ops.triton")


@torch.library.impl("csaligner::within", "default")
def _within_run(x: Tensor, weights: Tensor | None, sigma: float) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _implementation().within(x, weights, sigma)
    return found


@torch.library.register_fake("csaligner::within")
def _within_shapes(x: Tensor, weights: Tensor | None, sigma: float) -> tuple[Tensor, Tensor]:
    return x.new_empty((), dtype=torch.float64), x.new_empty(x.shape)


def _within_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _within_backward(ctx: Any, grad_value: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None, None]:
    refuse_second_derivative()
    (grad,) = ctx.saved_tensors
    return None if grad_value is None else grad * grad_value.to(grad.dtype), None, None


torch.library.register_autograd("csaligner::within", _within_backward, setup_context=_within_setup)


@torch.library.impl("csaligner::between", "default")
def _between_run(x: Tensor, y: Tensor, scale: Tensor, *rows: Any) -> tuple[Tensor, ...]:
    ids_x, ids_y, weights_x, weights_y, sigma = rows
    ids = None if ids_x is None else (ids_x, ids_y)
    found: tuple[Tensor, ...] = _implementation().between(x, y, scale, ids, (weights_x, weights_y), sigma)
    return found


@torch.library.register_fake("csaligner::between")
def _between_shapes(x: Tensor, y: Tensor, scale: Tensor, *rows: Any) -> tuple[Tensor, ...]:
    ids_x, padded = rows[0], _implementation().padded
    state: list[Tensor] = []
    for side in (x, y):
        count = side.shape[0]  # len() would fix the number in compiled code
        length = padded(count)
        state += [
            side.new_empty(length, side.shape[1]),
            side.new_empty(8, length, dtype=torch.float32),
            side.new_empty(0 if ids_x is None else length, dtype=torch.int64),
            side.new_empty(0 if ids_x is None else count, dtype=torch.int64),
        ]
    centre = x.new_empty(x.shape[1] if x.dtype == torch.float32 else 0)
    nce, log_mean = (x.new_empty((), dtype=torch.float64) for _ in range(2))
    return nce, log_mean, *state, centre, x.new_empty(2, dtype=torch.float64)


def _between_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, scale, *_, sigma = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(scale, *output[2:])
    ctx.counts, ctx.sigma = (x.shape[0], y.shape[0]), sigma


def _between_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_second_derivative()
    scale, *state = ctx.saved_tensors
    upstream = [state[-1].new_zeros(()) if grad is None else grad for grad in grads[:2]]
    found = torch.ops.csaligner.between_backward.default(*upstream, scale, state, *ctx.counts, ctx.sigma)
    grad_scale = found[2].to(scale.device, scale.dtype) if ctx.needs_input_grad[2] else None
    return found[0], found[1], grad_scale, None, None, None, None, None


torch.library.register_autograd("csaligner::between", _between_backward, setup_context=_between_setup)


@torch.library.impl("csaligner::between_backward", "default")
def _between_backward_run(
    grad_nce: Tensor, grad_log_mean: Tensor, scale: Tensor, state: list[Tensor], n: int, m: int, sigma: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    run = _implementation().between_backward
    found: tuple[Tensor, Tensor, Tensor] = run((grad_nce, grad_log_mean), scale, tuple(state), (n, m), sigma)
    return found


@torch.library.register_fake("csaligner::between_backward")
def _between_backward_shapes(
    grad_nce: Tensor, grad_log_mean: Tensor, scale: Tensor, state: list[Tensor], n: int, m: int, sigma: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = state[0], state[4]
    return x.new_empty(n, x.shape[1]), y.new_empty(m, y.shape[1]), x.new_empty((), dtype=torch.float64)
