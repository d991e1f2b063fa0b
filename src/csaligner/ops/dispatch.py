"""The door to the implementations: impl = "auto" | "reference" | "tiled" | "mixed" | "triton".

All give the same numbers within rounding, but for "mixed": tiles whose gradient products run in bfloat16, with exact
values and a relative gradient error of a few thousandths; opt-in, faster where the processor knows bfloat16. Arguments
were checked by arguments.py.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError, check_choice

from . import reference, tiled, tiled_contrastive
from .arguments import Samples
from .contrastive import RowInfo
from .kernels import Gaussian, Kernel
from .tiles import no_autocast, uncompiled

IMPLEMENTATIONS = ("auto", "reference", "tiled", "mixed", "triton")

# Up to this many entries of the N x M matrix dense autograd is as fast as the tiles, which have their
# overhead.
REFERENCE_ENTRIES = 128 * 128


def choose(impl: str, rows_x: int, rows_y: int) -> str:
    """The implementation that runs for these sizes. Raises InputError for a name it cannot run."""
    check_choice("impl", impl, IMPLEMENTATIONS)
    if impl == "auto":
        return "reference" if rows_x * rows_y <= REFERENCE_ENTRIES else "tiled"
    return impl


def _triton(x: Tensor, kernel: Kernel | None) -> Any:
    """The module of the Triton sweep, where it can do this. Raises InputError."""
    if kernel is not None and not isinstance(kernel, Gaussian):
        raise InputError('impl: "triton" knows the gaussian kernel at one bandwidth alone; take "tiled"')
    if x.dtype == torch.float64:
        raise InputError('impl: "triton" computes in float32 and float64 features were given; take "tiled"')
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise InputError(f'impl: "triton" runs on a GPU and the features are on {x.device}; take "auto" or "tiled"')
    try:
        return importlib.import_module("csaligner.ops.triton")
    except ImportError:
        raise InputError('impl: "triton" needs the package triton; install it, or take "tiled"') from None


@uncompiled
def within(x: Tensor, kernel: Kernel, weights: Tensor | None, impl: str, diagonal: bool = True) -> Tensor:
    """log mean k(x_i, x_j): see reference.log_kernel_mean. Scalar."""
    chosen = choose(impl, len(x), len(x))
    if chosen == "reference":
        with no_autocast(x):
            return reference.log_kernel_mean(x, None, kernel, weights, diagonal=diagonal)
    if chosen == "triton" and diagonal:
        value: Tensor = _triton(x, kernel).log_kernel_mean(x, None, kernel, weights)
        return value
    return tiled.log_kernel_mean(x, None, kernel, weights, diagonal=diagonal, mixed=_mixed(chosen, x))


@uncompiled
def between(samples: Samples, kernel: Kernel, impl: str) -> Tensor:
    """log mean k(x_i, y_j): see reference.log_kernel_mean. Scalar."""
    x, y, weights = samples.x, samples.y, (samples.weights_x, samples.weights_y)
    chosen = choose(impl, len(x), len(y))
    if chosen == "reference":
        with no_autocast(x):
            return reference.log_kernel_mean(x, y, kernel, *weights)
    if chosen == "triton":
        value: Tensor = _triton(x, kernel).log_kernel_mean(x, y, kernel, *weights)
        return value
    return tiled.log_kernel_mean(x, y, kernel, *weights, mixed=_mixed(chosen, x))


@uncompiled
def info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, impl: str) -> Tensor:
    """Multi-positive symmetric InfoNCE: see reference.info_nce. Scalar."""
    chosen = choose(impl, len(x), len(y))
    if chosen == "reference":
        with no_autocast(x):
            return reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)
    if chosen == "triton":
        value: Tensor = _triton(x, None).info_nce(x, y, scale, rows)
        return value
    return tiled_contrastive.info_nce(x, y, scale, replace(rows, mixed=_mixed(chosen, x)))


@uncompiled
def info_nce_and_between(
    x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel, impl: str
) -> tuple[Tensor, Tensor]:
    """info_nce and between of the same points; tiled: from the same products. Two scalars."""
    chosen = choose(impl, len(x), len(y))
    if chosen == "reference":
        with no_autocast(x):
            nce = reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)
            return nce, reference.log_kernel_mean(x, y, kernel, rows.weights_x, rows.weights_y)
    if chosen == "triton":
        values: tuple[Tensor, Tensor] = _triton(x, kernel).info_nce_and_log_kernel_mean(x, y, scale, rows, kernel)
        return values
    rows = replace(rows, mixed=_mixed(chosen, x))
    return tiled_contrastive.info_nce_and_log_kernel_mean(x, y, scale, rows, kernel)


def _mixed(chosen: str, x: Tensor) -> bool:
    if chosen == "mixed" and x.dtype == torch.float64:
        raise InputError('impl: "mixed" rounds to bfloat16 and float64 features were given; take "tiled"')
    return chosen == "mixed"
