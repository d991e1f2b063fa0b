"""The objective across ranks: the one place where losses, which know no rank, meet the ranks, which know no loss.

exchange says how. "gather": every rank gathers all rows and computes the global loss; any term, N d numbers a rank.
"ring": blocks of rows travel, see ops.ring; InfoNCE, D_CS and MMD, O(N/R d) numbers a rank, for batches too large to
gather. "none": every rank looks at its own rows, which is another loss, a mean of small ones. "gather" and "ring" give
the numbers of one process; gradients follow the rule of csaligner.distributed.gather, made for DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from csaligner.checks import InputError, check_choice
from csaligner.losses.infonce import NAMES
from csaligner.losses.objective import INFO_NCE, KERNEL_TERMS, Objective, at_work, kernel_values, weighted
from csaligner.ops.arguments import Ids, Samples, pair_ids, samples, scale_of, whole_numbers
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth, median_rows
from csaligner.ops.contrastive import RowInfo
from csaligner.ops.kernels import Kernel, make_kernel
from csaligner.ops.reference import id_weights
from csaligner.ops.tiles import uncompiled
from csaligner.registry import DIVERGENCES
from csaligner.types import LossTerms

from . import ring
from .gather import gather_ids, gather_rows, rank, row_counts, world_size

EXCHANGES = ("gather", "ring", "none")


class ParallelObjective:
    """An Objective on the rows of all ranks. Every rank must call it, with at least one row of each side."""

    def __init__(self, objective: Objective, exchange: str = "gather") -> None:
        self.objective = objective
        self.exchange = check_choice("exchange", exchange, EXCHANGES)
        if exchange != "ring":
            return
        others = set(objective.terms) - {INFO_NCE, *KERNEL_TERMS}
        if others:
            raise InputError(f'exchange: "ring" does not know {sorted(others)[0]!r}; take "gather"')
        if objective.impl not in ("auto", "tiled"):
            raise InputError(f'exchange: "ring" has tiles of its own; impl {objective.impl!r} needs "gather"')

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
        """The value on the rows of all ranks, the same on each; arguments as in Objective, of the own rows.

        Ids must be whole numbers that mean the same on every rank; without them row i belongs to row i of the same
        rank. Raises InputError, on every rank if on one.
        """
        if self.exchange == "none" or (self.exchange == "gather" and world_size() == 1):
            return self.objective(image_features, text_features, logit_scale, image_ids, text_ids, weights)
        ids_x = None if image_ids is None else whole_numbers("image_ids", image_ids, image_features)
        ids_y = None if text_ids is None else whole_numbers("text_ids", text_ids, text_features)
        lambdas = self.objective.lambdas(weights)
        if ids_y is None and not at_work(lambdas) <= set(DIVERGENCES):
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
        active = at_work(lambdas)
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
        """The kernel that one process would make of all rows: the median rule looks at the same few."""
        x, y = s.x.detach(), s.y.detach()
        if "median" in (self.objective.bandwidth if isinstance(self.objective.bandwidth, Sequence) else ()):
            counts = row_counts(x), row_counts(y)
            total_x = sum(counts[0])
            take = median_rows(total_x + sum(counts[1])).to(x.device)
            x = gather_rows(x[_own(take[take < total_x], counts[0])])
            y = gather_rows(y[_own(take[take >= total_x] - total_x, counts[1])])
        return make_kernel(self.objective.kernel, self.objective.bandwidth, x, y, scale)


class ParallelCSAlignerLoss(nn.Module):
    """CSAlignerLoss on the rows of all ranks: InfoNCE + weight * D_CS.

    weight, bandwidth, impl and kernel as in CSAlignerLoss; exchange: "gather", "ring" or "none", see the module.
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
        objective = Objective({INFO_NCE: 1.0, "cauchy_schwarz": weight}, bandwidth, impl, kernel)
        self.objective = ParallelObjective(objective, exchange)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        image_ids: Ids | None = None,
        text_ids: Ids | None = None,
    ) -> LossTerms:
        """Call backward on `.total` on every rank. Arguments as in ParallelObjective."""
        return self.objective(image_features, text_features, logit_scale, image_ids, text_ids)


def _checked_together(image_features: Tensor, text_features: Tensor) -> Samples:
    """Checks the own rows; bad input on one rank is an error on all, so that none waits for another."""
    error: InputError | None = None
    try:
        s = samples(image_features, text_features, names=NAMES)
    except InputError as found:
        error = found
    good = torch.tensor([0 if error else 1], device=image_features.device)
    bad_ranks = [number for number, ok in enumerate(gather_ids(good).tolist()) if not ok]
    if error is not None:
        raise error
    if bad_ranks:
        raise InputError(f"rank {bad_ranks[0]} was given features that cannot be used; its own error says why")
    return s


def _rows(s: Samples, image_ids: Tensor | None, text_ids: Tensor | None, unpaired: float) -> RowInfo:
    """Ids, and kernel weights 1/m counted over all ranks, `unpaired` for a row without a partner."""
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
    """Those of the positions in all rows that lie on this rank, as positions in the own rows."""
    start = sum(counts[: rank()])
    return positions[(positions >= start) & (positions < start + counts[rank()])] - start


def _check_same_counts(x: Tensor, y: Tensor) -> None:
    if row_counts(x) != row_counts(y):
        raise InputError("image_ids, text_ids: missing, and a rank has more rows of one side; give both to pair them")
