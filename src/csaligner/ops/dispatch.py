"""Table of implementations, impl = "auto" | "reference" | "dense" | "tiled" | "mixed" | "triton", and their selection.

All agree within rounding error, except "mixed": tiles with gradient products in bfloat16, exact values and a relative
gradient error of a few thousandths; opt-in, faster with bfloat16 matrix products and replaced by "tiled" without.
Arguments are checked by arguments.py.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from csaligner.checks import InputError, check_choice

from . import dense, joint, reference, tiled, tiled_contrastive, triton_operators
from .arguments import Samples
from .contrastive import RowInfo
from .kernels import Gaussian, Kernel
from .tiles import DENSE_ENTRIES, no_autocast

IMPLEMENTATIONS = ("auto", "reference", "dense", "tiled", "mixed", "triton")

GPU_REFERENCE_ENTRIES = 4096 * 4096
TRITON_INSTALLED = find_spec("triton") is not None


@dataclass(frozen=True)
class Implementation:
    """The differentiable operations of one implementation; values are scalars.

    log_kernel_mean(x, y or None, kernel, weights_x, weights_y, diagonal): within x, or between x and y. info_nce(x, y,
    scale, rows). fused(x, y, scale, rows, kernel): info_nce and log_kernel_mean of the same points, from shared
    products if possible. joint(x, y, scale, rows, kernel, weights): a weighted sum of InfoNCE, D_CS and MMD, and its
    terms, in one operation that returns None where it cannot be used; None if there is no such operation. Formulas:
    reference.log_kernel_mean, reference.info_nce.
    """

    log_kernel_mean: Callable[..., Tensor]
    info_nce: Callable[[Tensor, Tensor, Tensor, RowInfo], Tensor]
    fused: Callable[[Tensor, Tensor, Tensor, RowInfo, Any], tuple[Tensor, Tensor]]
    joint: Callable[..., tuple[Tensor, dict[str, Tensor]] | None] | None = None


def _reference_kernel_mean(x: Tensor, *arguments: Any, **more: Any) -> Tensor:
    with no_autocast(x):
        return reference.log_kernel_mean(x, *arguments, **more)


def _reference_info_nce(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo) -> Tensor:
    with no_autocast(x):
        return reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)


def _reference_fused(x: Tensor, y: Tensor, scale: Tensor, rows: RowInfo, kernel: Kernel) -> tuple[Tensor, Tensor]:
    with no_autocast(x):
        nce = reference.info_nce(x, y, scale, rows.ids_x, rows.ids_y)
        return nce, reference.log_kernel_mean(x, y, kernel, rows.weights_x, rows.weights_y)


TABLE = {
    "reference": Implementation(_reference_kernel_mean, _reference_info_nce, _reference_fused),
    "dense": Implementation(dense.log_kernel_mean, dense.info_nce, dense.fused, joint.joint),
    "tiled": Implementation(tiled.log_kernel_mean, tiled_contrastive.info_nce, tiled_contrastive.fused),
    "mixed": Implementation(
        partial(tiled.log_kernel_mean, mixed=True),
        partial(tiled_contrastive.info_nce, mixed=True),
        partial(tiled_contrastive.fused, mixed=True),
    ),
    "triton": Implementation(triton_operators.log_kernel_mean, triton_operators.info_nce, triton_operators.fused),
}
# torch.compile traces these; it would unroll the loops over tiles of the others, which end its graph instead.
TRACED = ("reference", "triton")


def choose(impl: str, x: Tensor, y: Tensor, kernel: Kernel | None = None) -> str:
    """Return the name of the implementation to use for these samples; "auto" depends on size, device and dtype.

    On a GPU: "reference" up to GPU_REFERENCE_ENTRIES entries, then "triton" if supported, else "tiled" with a warning.
    Elsewhere: "dense" up to DENSE_ENTRIES, then "tiled". "mixed" becomes "tiled", with a warning, on a processor
    without bfloat16 products. Raises InputError for an unknown name.
    """
    check_choice("impl", impl, IMPLEMENTATIONS)
    if impl == "mixed" and x.device.type == "cpu" and not bfloat16_products():
        return "tiled"
    if impl != "auto":
        return impl
    if not x.is_cuda:
        return "dense" if x.shape[0] * y.shape[0] <= DENSE_ENTRIES else "tiled"
    if len(x) * len(y) <= GPU_REFERENCE_ENTRIES:
        return "reference"
    limitation = _triton_limitation(x, kernel)
    if limitation is not None:
        warnings.warn(f'impl: "auto" uses "tiled" on this GPU: "triton" {limitation}', stacklevel=2)
        return "tiled"
    return "triton"


@cache
def bfloat16_products() -> bool:
    """Return whether the processor multiplies bfloat16 matrices in hardware; True if torch does not know.

    Warns, once per process, that "mixed" is replaced if it does not.
    """
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    supported = not found or any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))
    if not supported:
        warnings.warn('impl: "mixed" is slower on this processor (no bfloat16 products); using "tiled"', stacklevel=4)
    return supported


def implementation(impl: str, x: Tensor, y: Tensor, kernel: Kernel | None = None) -> Implementation:
    """Return the operations for these samples. Raises InputError if the requested implementation cannot run.

    torch.compile traces those in TRACED only.
    """
    name = choose(impl, x, y, kernel)
    if name == "triton" and (reason := _triton_limitation(x, kernel)) is not None:
        raise InputError(f'impl: "triton" {reason}')
    if name == "mixed" and x.dtype == torch.float64:
        raise InputError('impl: "mixed" rounds to bfloat16, but the features are float64; use "tiled"')
    found = TABLE[name]
    if name not in TRACED and torch.compiler.is_compiling():  # not at import: disable() imports the compiler
        disable: Callable[[Any], Any] = torch.compiler.disable
        found = replace(found, **{f.name: disable(g) for f in fields(found) if (g := getattr(found, f.name))})
    return found


def log_kernel_means(s: Samples, kernel: Kernel, impl: str, diagonal: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log means of k(x_i, x_j), k(y_i, y_j) and k(x_i, y_j). diagonal=False: i != j in the first two."""
    (x, a), (y, b) = (s.x, s.weights_x), (s.y, s.weights_y)
    within_x = implementation(impl, x, x, kernel).log_kernel_mean(x, None, kernel, a, diagonal=diagonal)
    within_y = implementation(impl, y, y, kernel).log_kernel_mean(y, None, kernel, b, diagonal=diagonal)
    return within_x, within_y, implementation(impl, x, y, kernel).log_kernel_mean(x, y, kernel, a, b)


def settle(s: Samples, kernel: Kernel | None, impl: str) -> tuple[Samples, str]:
    """Return the samples in a dtype that their implementation supports, and the name of that implementation.

    Only "triton" supports half-precision features; for the others they are converted to float32.
    """
    if s.x.dtype not in (torch.float16, torch.bfloat16):
        return s, impl
    if choose(impl, s.x, s.y, kernel) == "triton":
        return s, "triton"
    return replace(s, x=s.x.float(), y=s.y.float()), impl


def _triton_limitation(x: Tensor, kernel: Kernel | None) -> str | None:
    """Return why the Triton kernels cannot run on these features, or None."""
    if kernel is not None and not isinstance(kernel, Gaussian):
        return 'supports only the gaussian kernel with one bandwidth; use "tiled"'
    if x.dtype == torch.float64:
        return 'computes in float32, but the features are float64; use "tiled"'
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f'requires a GPU, but the features are on {x.device}; use "auto" or "tiled"'
    if not TRITON_INSTALLED:
        return 'requires the package triton; install it, or use "tiled"'
    return None
