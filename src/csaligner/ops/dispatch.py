"""The door to the implementations: impl = "auto" | "reference" | "tiled" | "mixed" | "triton".

All give the same numbers within rounding, but for "mixed": tiles whose gradient products run in bfloat16, with exact
values and a relative gradient error of a few thousandths; opt-in, faster where the processor knows bfloat16. Arguments
were checked by arguments.py.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from csaligner.checks import InputError, check_choice

from . import reference, tiled, tiled_contrastive
from .arguments import Samples
from .kernels import Kernel
from .pairs import Rows

IMPLEMENTATIONS = ("auto", "reference", "tiled", "mixed", "triton")

# Up to this many entries of the N x M matrix dense autograd is as fast as the tiles, which have their
# overhead.
REFERENCE_ENTRIES = 128 * 128


def choose(impl: str, rows_x: int, rows_y: int) -> str:
    """The implementation that runs for these sizes. Raises InputError for a name it cannot run."""
    check_choice("impl", impl, IMPLEMENTATIONS)
    if impl == "triton":
        raise InputError('impl: "triton" is not available in this version; take "auto" or "tiled"')
    if impl == "auto":
        return "reference" if rows_x * rows_y <= REFERENCE_ENTRIES else "tiled"
    return impl


def within(x: Tensor, kernel: Kernel, weights: Tensor | None, impl: str, diagonal: bool = True) -> Tensor:
    """log mean k(x_i, x_j): see reference.log_kernel_mean. Scalar."""
    chosen = choose(impl, len(x), len(x))
    if chosen == "reference":
        return reference.log_kernel_mean(x, None, kernel, weights, diagonal=diagonal)
    return tiled.log_kernel_mean(x, None, kernel, weights, diagonal=diagonal, mixed=_mixed(chosen, x))


def between(samples: Samples, kernel: Kernel, impl: str) -> Tensor:
    """log mean k(x_i, y_j): see reference.log_kernel_mean. Scalar."""
    x, y, weights = samples.x, samples.y, (samples.weights_x, samples.weights_y)
    chosen = choose(impl, len(x), len(y))
    if chosen == "reference":
        return reference.log_kernel_mean(x, y, kernel, *weights)
    return tiled.log_kernel_mean(x, y, kernel, *weights, mixed=_mixed(chosen, x))


def info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: Rows, impl: str) -> Tensor:
    """Multi-positive symmetric InfoNCE: see reference.info_nce. Scalar."""
    chosen = choose(impl, len(x), len(y))
    if chosen == "reference":
        return reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)
    return tiled_contrastive.info_nce(x, y, scale, replace(rows, mixed=_mixed(chosen, x)))


def info_nce_and_between(
    x: Tensor, y: Tensor, scale: Tensor, rows: Rows, kernel: Kernel, impl: str
) -> tuple[Tensor, Tensor]:
    """info_nce and between of the same points; tiled: from the same products. Two scalars."""
    chosen = choose(impl, len(x), len(y))
    if chosen == "reference":
        nce = reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)
        return nce, reference.log_kernel_mean(x, y, kernel, rows.weights_x, rows.weights_y)
    rows = replace(rows, mixed=_mixed(chosen, x))
    return tiled_contrastive.info_nce_and_log_kernel_mean(x, y, scale, rows, kernel)


def _mixed(chosen: str, x: Tensor) -> bool:
    if chosen == "mixed" and x.dtype == torch.float64:
        raise InputError('impl: "mixed" rounds to bfloat16 and float64 features were given; take "tiled"')
    return chosen == "mixed"
