"""Kernel sums between two modalities, accumulated from the same product tiles as the InfoNCE softmaxes.

First pass: call `add` for every tile, then `log_mean`. Second pass: `gradient` returns a function that adds the
contribution of each tile. OnlineKernelSum supports every kernel and bandwidth; FoldedKernelSum is the faster form for
wide Gaussians (gaussian_factors.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .contrastive import Pair
from .gaussian_factors import factor_of, folds
from .kernels import Gaussian, Kernel
from .logsumexp import LOWEST, Tile
from .tiles import must_rise, totals_dtype

AddTile = Callable[[Tile, Tensor, Tensor], None]


class KernelSum(Protocol):
    """Accumulator of a kernel sum over tiles.

    gradient(factor) returns (mass_x, mass_y, add): add(tile, w, work) subtracts factor * r from w and adds the sums of
    factor * r over columns and rows to mass_x and mass_y. r_ij is the relative contribution of pair (i, j) times its
    slope: d/dx_i = factor * (x_i sum_j r_ij - sum_j r_ij y_j).
    """

    def add(self, tile: Tile, work: Tensor) -> None: ...

    def log_mean(self) -> Tensor: ...

    def gradient(self, factor: float) -> tuple[Tensor, Tensor, AddTile]: ...


def kernel_sum(pair: Pair, kernel: Kernel) -> KernelSum:
    """Return the fastest accumulator that is exact for this pair."""
    if isinstance(kernel, Gaussian) and folds(kernel, pair.x.sample, pair.y.sample):
        return FoldedKernelSum(pair, kernel)
    return OnlineKernelSum(pair, kernel)


class OnlineKernelSum:
    """Kernel sum total * exp(top), with a running maximum top."""

    def __init__(self, pair: Pair, kernel: Kernel) -> None:
        self._pair, self._kernel, self._top, self._total = pair, kernel, LOWEST, _zero(pair)

    def add(self, tile: Tile, work: Tensor) -> None:
        log_k, _ = self._pair.log_kernel(tile.s, tile.i, tile.j, self._kernel, work)
        raised = must_rise(self._top, log_k, self._pair.x.sample, self._pair.y.sample)
        if raised is not None:
            self._total *= math.exp(self._top - raised)
            self._top = raised
        self._total += log_k.sub_(self._top).exp_().sum(dim=1).sum(dtype=self._total.dtype)

    def log_mean(self) -> Tensor:
        return self._total.log() + (self._top + _log_constant(self._pair))

    def gradient(self, factor: float) -> tuple[Tensor, Tensor, AddTile]:
        mass_x, mass_y = (torch.zeros_like(side.sample.square_norms) for side in (self._pair.x, self._pair.y))
        factor = 2 * factor / float(self._total)

        def add(tile: Tile, w: Tensor, work: Tensor) -> None:
            log_k, slope = self._pair.log_kernel(tile.s, tile.i, tile.j, self._kernel, work)
            r = log_k.sub_(self._top).exp_()
            times = factor
            if isinstance(slope, Tensor):
                r.mul_(slope)
            else:
                times *= slope
            w.add_(r, alpha=-times)
            mass_x[tile.i].add_(r.sum(dim=1), alpha=times)
            mass_y[tile.j].add_(r.sum(dim=0), alpha=times)

        return mass_x, mass_y, add


class FoldedKernelSum:
    """Gaussian kernel sum in factored form, sum_ij a_i e_ij b_j with e_ij = exp(x_i.y_j / sigma^2)."""

    def __init__(self, pair: Pair, kernel: Gaussian) -> None:
        self._pair, self._rate, self._total = pair, 1 / kernel.sigma**2, _zero(pair)
        self._a, self._b = factor_of(pair.x.sample, kernel), factor_of(pair.y.sample, kernel)

    def _exponentials(self, tile: Tile, out: Tensor) -> Tensor:
        return torch.mul(tile.s, self._rate, out=out).exp_()

    def add(self, tile: Tile, work: Tensor) -> None:
        self._total += self._a[tile.i] @ (self._exponentials(tile, work) @ self._b[tile.j])

    def log_mean(self) -> Tensor:
        return self._total.log() + _log_constant(self._pair)

    def gradient(self, factor: float) -> tuple[Tensor, Tensor, AddTile]:
        mass_x, mass_y = torch.zeros_like(self._a), torch.zeros_like(self._b)
        a, b = self._a * (-factor * self._rate / float(self._total)), self._b

        def add(tile: Tile, w: Tensor, work: Tensor) -> None:
            i, j = tile.i, tile.j
            e = self._exponentials(tile, work)
            mass_x[i].addcmul_(a[i], e @ b[j])
            mass_y[j].addcmul_(b[j], e.T @ a[i])
            w.addcmul_(e.mul_(b[j]), a[i][:, None], value=-1)

        return mass_x, mass_y, add


def _zero(pair: Pair) -> Tensor:
    points = pair.x.sample.points
    return torch.zeros((), dtype=totals_dtype(points), device=points.device)


def _log_constant(pair: Pair) -> float:
    return pair.x.sample.log_constant + pair.y.sample.log_constant
