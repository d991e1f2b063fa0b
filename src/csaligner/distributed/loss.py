"""CSAlignerLoss, and the objective of the global batch over all processes.

exchange selects how rows are exchanged. "gather": every rank gathers all rows and computes the global loss; any term,
N d numbers per rank. "ring": blocks of rows are passed between ranks, see distributed.ring; InfoNCE, D_CS and MMD,
O(N/R d) numbers per rank, for batches too large to gather. "none": every rank uses its local rows only, which is a
different loss, the mean of the losses of smaller batches. "gather" and "ring" give the same values as a single process;
gradients follow the rule of csaligner.distributed.gather, which fits DistributedDataParallel.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from csaligner.checks import InputError, check_choice
from csaligner.losses.infonce import NAMES
from csaligner.losses.objective import INFO_NCE, KERNEL_TERMS, Objective, active_terms, kernel_values, weighted
from csaligner.ops.arguments import Ids, Samples, pair_ids, samples, scale_of, whole_numbers
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth, median_rows, uses_median
from csaligner.ops.contrastive import RowInfo
from csaligner.ops.kernels import Kernel, make_kernel
from csaligner.ops.reference import id_weights
from csaligner.ops.tiles import uncompiled
from csaligner.registry import DIVERGENCES
from csaligner.types import LossTerms

from . import ring
from .gather import gather_ids, gather_rows, row_counts
from .processes import rank, world_size

EXCHANGES = ("gather", "ring", "none")
RING_TERMS = frozenset({INFO_NCE, *KERNEL_TERMS})


class CSAlignerLoss(nn.Module):
    """InfoNCE + weight * D_CS, for one or several processes, in the style of open_clip's ClipLoss.

    weight: lambda >= 0 of the Cauchy-Schwarz divergence; bandwidth: its sigma (ops.bandwidth.resolve_bandwidth); impl:
    ops.dispatch; kernel: a key of ops.kernels.KERNELS. exchange: "gather", "ring" or "none", see the module docstring;
    without a process group all three give the same values. The module has no parameters. Raises InputError.
    Source: CS-Aligner (arXiv 2502.17028) eq. 9.
    """

    def __init__(
        self,
        weight: float = 1.0,
        bandwidth: Bandwidth | Sequence[Bandwidth] = DEFAULT_BANDWIDTH,
        impl: str = "auto",
        kernel: str = "gaussian",
        exchange: str = "gather",
    ) -> None:
        super().__init__()
        self.objective = Objective({INFO_NCE: 1.0, "cauchy_schwarz": weight}, bandwidth, impl, kernel)
        self.exchange = exchange
        self._exchanged = ExchangedObjective(self.objective, exchange)

    def extra_repr(self) -> str:
        o = self.objective
        settings = {"weight": o.terms["cauchy_schwarz"], "bandwidth": o.bandwidth, "impl": o.impl, "kernel": o.kernel}
        return ", ".join(f"{name}={value!r}" for name, value in {**settings, "exchange": self.exchange}.items())

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        image_ids: Ids | None = None,
        text_ids: Ids | None = None,
    ) -> LossTerms:
        """Return the loss terms; call backward on `.total`, on every process.

        Arguments as in Objective, for the local rows; features are not normalised here. In a process group, ids must be
        integers with the same meaning on every rank.
        """
        alone = self.exchange == "none" or (self.exchange == "gather" and world_size() == 1)
        compute = self.objective if alone else self._exchanged
        return compute(image_features, text_features, logit_scale, image_ids, text_ids)


class ExchangedObjective:
    """An Objective on the rows of all ranks. Every rank must call it. Each modality needs at least one row."""

    def __init__(self, objective: Objective, exchange: str = "gather") -> None:
        self.objective = objective
        self.exchange = check_choice("exchange", exchange, EXCHANGES)
        if exchange != "ring":
            return
        others = set(objective.terms) - RING_TERMS
        if others:
            raise InputError(f'exchange: "ring" does not support the term {sorted(others)[0]!r}; use "gather"')
        if objective.impl not in ("auto", "tiled"):
            raise InputError(
                f'exchange: "ring" supports impl "auto" and "tiled"; impl {objective.impl!r} needs "gather"'
            )

    @uncompiled
    def __call__(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        image_ids: Ids | None = None,
        text_ids: Ids | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> LossTerms:
        """Return the loss terms of the global batch, equal on all ranks; arguments as in Objective, for the local rows.

        Ids must be integers with the same meaning on every rank; without ids, image i and text i of the same rank form
        a pair. Raises InputError, on every rank if on one.
        """
        if self.exchange == "none" or (self.exchange == "gather" and world_size() == 1):
            return self.objective(image_features, text_features, logit_scale, image_ids, text_ids, weights)
        ids_x = None if image_ids is None else whole_numbers("image_ids", image_ids, image_features)
        ids_y = None if text_ids is None else whole_numbers("text_ids", text_ids, text_features)
        lambdas = self.objective.lambdas(weights)
        if ids_y is None and not active_terms(lambdas) <= set(DIVERGENCES):
            _check_same_counts(image_features, text_features)
        if self.exchange == "ring":
            return self._ring(_checked_together(image_features, text_features), logit_scale, (ids_x, ids_y), lambdas)
        x, y = gather_rows(image_features), gather_rows(text_features)
        ids_x, ids_y = (None if ids is None else gather_ids(ids) for ids in (ids_x, ids_y))
        return self.objective(x, y, logit_scale, ids_x, ids_y, weights)

    def _ring(
        self,
        s: Samples,
        logit_scale: Tensor | float,
        ids: tuple[Tensor | None, Tensor | None],
        lambdas: Mapping[str, float],
    ) -> LossTerms:
        active = active_terms(lambdas)
        rows, scale = _rows(s, *ids, self.objective.unpaired_weight), scale_of(logit_scale, s.x)
        values: dict[str, Tensor] = {}
        kernel = self._kernel(s, scale) if active & set(KERNEL_TERMS) else None
        if active:
            nce, between = ring.contrastive(s.x, s.y, scale, rows, kernel, INFO_NCE in active)
        if INFO_NCE in active:
            values[INFO_NCE] = nce
        if kernel is not None:
            within_x = ring.within(s.x, kernel, rows.weights_x)
            within_y = ring.within(s.y, kernel, rows.weights_y)
            values |= kernel_values(active, within_x, within_y, between)
        return weighted(values, lambdas, s)

    def _kernel(self, s: Samples, scale: Tensor) -> Kernel:
        """Return the kernel that a single process would use for the global batch."""
        bandwidth = self.objective.bandwidth
        x, y = s.x.detach(), s.y.detach()
        if uses_median(bandwidth):
            x, y = median_sample(x, y)
        return make_kernel(self.objective.kernel, bandwidth, x, y, scale)


def median_sample(x: Tensor, y: Tensor, paired_first: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Return the rows of all ranks that the median rule would use on a single process: at most 2,048.

    x: (n, d), y: (m, d), the local rows. paired_first: their ids, to order paired rows before unpaired rows (-1), as
    the trainer does. Without a gradient; equal on all ranks.
    """
    x, y = x.detach(), y.detach()
    counts = row_counts(x), row_counts(y)
    total_x = sum(counts[0])
    take = median_rows(total_x + sum(counts[1])).to(x.device)
    parts = take[take < total_x], take[take >= total_x] - total_x
    if paired_first is not None:
        order_x, order_y = (torch.argsort((gather_ids(ids) < 0).int(), stable=True) for ids in paired_first)
        parts = order_x[parts[0]], order_y[parts[1]]
    return gather_rows(x[_own(parts[0], counts[0])]), gather_rows(y[_own(parts[1], counts[1])])


def _checked_together(image_features: Tensor, text_features: Tensor) -> Samples:
    """Check the local rows; invalid input on one rank raises on all ranks, so that no rank blocks."""
    error: InputError | None = None
    try:
        s = _own_samples(image_features, text_features)
    except InputError as found:
        error = found
    state = [0 if error else 1, len(image_features), len(text_features)]
    states = gather_ids(torch.tensor([state], device=image_features.device))
    if error is not None:
        raise error
    bad_ranks = [number for number, good in enumerate(states[:, 0].tolist()) if not good]
    if bad_ranks:
        raise InputError(f"rank {bad_ranks[0]} received invalid features; see the error of that rank")
    for name, total in zip(NAMES, states[:, 1:].sum(dim=0).tolist(), strict=True):
        if total == 0:
            raise InputError(f"{name}: no rows on any rank; wanted at least one")
    return s


def _own_samples(x: Tensor, y: Tensor) -> Samples:
    """Check samples like ops.arguments.samples, but allow a rank without rows."""
    if world_size() == 1 or (len(x) and len(y)) or x.ndim != 2 or y.ndim != 2:
        return samples(x, y, names=NAMES)
    more_x, more_y = (torch.cat([side, side.new_zeros(1, side.shape[1])]) for side in (x, y))  # keeps the graph
    s = samples(more_x, more_y, names=NAMES)
    return Samples(s.x[: len(x)], s.y[: len(y)])


def _rows(s: Samples, image_ids: Tensor | None, text_ids: Tensor | None, unpaired: float) -> RowInfo:
    """Return ids and kernel weights: 1/m with m counted over all ranks, `unpaired` for unpaired rows."""
    if image_ids is None and text_ids is None:
        ids_x, ids_y = (
            torch.arange(len(side), device=side.device) + sum(row_counts(side)[: rank()]) for side in (s.x, s.y)
        )
        return RowInfo(ids_x, ids_y)
    ids_x, ids_y = pair_ids(image_ids, text_ids, s.x, s.y, need_pairs=False)
    return RowInfo(ids_x, ids_y, _kernel_weights(ids_x, unpaired), _kernel_weights(ids_y, unpaired))


def _kernel_weights(ids: Tensor, unpaired: float) -> Tensor:
    start = sum(row_counts(ids)[: rank()])
    return id_weights(gather_ids(ids), unpaired)[start : start + len(ids)]


def _own(positions: Tensor, counts: list[int]) -> Tensor:
    """Select the global positions that are on this rank and convert them to local positions."""
    start = sum(counts[: rank()])
    return positions[(positions >= start) & (positions < start + counts[rank()])] - start


def _check_same_counts(x: Tensor, y: Tensor) -> None:
    if row_counts(x) != row_counts(y):
        raise InputError(
            "image_ids, text_ids: missing, but a rank has unequal numbers of image and text rows; provide both"
        )


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "ParallelCSAlignerLoss":
            warnings.warn(
                f"{name} is deprecated and will be removed in version 0.4; use csaligner.CSAlignerLoss",
                DeprecationWarning,
                2,
            )
            return CSAlignerLoss
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
