"""The training objective: a weighted sum of named loss terms on one batch."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from csaligner.checks import InputError, check_choice, check_finite, check_non_negative, check_positive
from csaligner.divergences.cauchy_schwarz import from_log_means as log_cauchy_schwarz
from csaligner.divergences.mmd import from_log_means as squared_mmd
from csaligner.ops import dispatch
from csaligner.ops.arguments import Ids, Samples, pair_ids, samples, scale_of
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth, check_bandwidth, uses_median
from csaligner.ops.contrastive import RowInfo, one_to_one
from csaligner.ops.kernels import KERNELS, Kernel, bandwidths, make_kernel
from csaligner.ops.reference import id_weights
from csaligner.registry import DIVERGENCES, PAIRED_LOSSES, load
from csaligner.types import LossTerms

from .infonce import NAMES

INFO_NCE = "info_nce"

# Terms computed from the three log kernel means, which are shared among them.
KERNEL_TERMS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cauchy_schwarz": log_cauchy_schwarz,
    "mmd": squared_mmd,
}


class Objective:
    """total = sum over names of weight * term, for example {"info_nce": 1.0, "cauchy_schwarz": 1.0}.

    terms: "info_nce", or any registered paired loss or divergence, with its weight lambda >= 0; terms of weight 0 are
    not computed. bandwidth: kernel bandwidth of all kernel terms, see ops.bandwidth.resolve_bandwidth ("temperature"
    uses the logit scale of each call); kernel: a key of ops.kernels.KERNELS. impl: see ops.dispatch. InfoNCE and
    kernel terms share the products of the same points. unpaired_weight: weight of an unpaired row in the divergences,
    > 0.
    """

    def __init__(
        self,
        terms: Mapping[str, float],
        bandwidth: Bandwidth | Sequence[Bandwidth] = DEFAULT_BANDWIDTH,
        impl: str = "auto",
        kernel: str = "gaussian",
        unpaired_weight: float = 1.0,
    ) -> None:
        if not terms:
            raise InputError('terms: got none, wanted at least one, such as {"info_nce": 1.0}')
        self.terms = _checked(terms, (INFO_NCE, *PAIRED_LOSSES, *DIVERGENCES))
        check_bandwidth(bandwidth)
        self.bandwidth = bandwidth
        self.unpaired_weight = check_positive("unpaired_weight", unpaired_weight)
        self.kernel = check_choice("kernel", kernel, KERNELS)
        self.impl = check_choice("impl", impl, dispatch.IMPLEMENTATIONS)

    def __call__(
        self,
        image_features: Any,
        text_features: Any,
        logit_scale: Tensor | float,
        image_ids: Ids | None = None,
        text_ids: Ids | None = None,
        term_weights: Mapping[str, float] | None = None,
        *,
        weights: Mapping[str, float] | None = None,
    ) -> LossTerms:
        """Return the loss terms of one batch, differentiable in the features and the scale.

        image_features: (N, d), text_features: (M, d), not normalised here: pass unit rows, as in open_clip.
        logit_scale, ids: as in info_nce. In the divergences, a row has weight 1/m, m = number of rows of its modality
        with the same id; unpaired rows (id -1 or None) have weight `unpaired_weight` and are excluded from InfoNCE. If
        InfoNCE has weight 0, the samples may differ in size without ids.
        term_weights: weights that override those of the objective in this call (schedules); weights: its deprecated
        name. Raises InputError.
        """
        if weights is not None:
            warnings.warn(
                "weights is deprecated and will be removed in version 0.4; use term_weights",
                DeprecationWarning,
                stacklevel=2,
            )
        lambdas = self.lambdas(term_weights if weights is None else weights)
        active = active_terms(lambdas)
        s = samples(image_features, text_features, names=NAMES, half=True, finite=uses_median(self.bandwidth))
        need_pairs = not active.isdisjoint((INFO_NCE, *PAIRED_LOSSES))
        rows = _rows(s, image_ids, text_ids, need_pairs, self.unpaired_weight)
        batch = self._batch(s, scale_of(logit_scale, s.x), rows)
        return _terms(lambdas, batch, finite=uses_median(self.bandwidth))

    def of_checked(self, x: Tensor, y: Tensor, scale: Tensor, ids_x: Tensor, ids_y: Tensor) -> LossTerms:
        """Return the loss terms without checks, and on a GPU without waiting for it: for the batches of a trainer.

        torch.compile traces it without a graph break for the implementations in dispatch.TRACED.

        x: (N, d), y: (M, d), finite, of one dtype and device. scale: a positive scalar. ids: int64, at least -1, some
        of them equal. Other arguments as in the call.
        """
        as_they_are = x.is_cuda or torch.compiler.is_compiling()
        if not as_they_are and one_to_one(ids_x, ids_y):
            rows = RowInfo(ids_x, ids_y, one_to_one=True)
        else:
            weigh = id_weights if as_they_are else _kernel_weights
            rows = RowInfo(ids_x, ids_y, weigh(ids_x, self.unpaired_weight), weigh(ids_y, self.unpaired_weight))
        batch = self._batch(Samples(x, y), scale.to(x.device), rows)
        return _terms(self.terms, batch, finite=True)

    def _batch(self, s: Samples, scale: Tensor, rows: RowInfo) -> _Batch:
        s = Samples(s.x, s.y, rows.weights_x, rows.weights_y)
        kernel = make_kernel(self.kernel, self.bandwidth, s.x, s.y, scale)
        s, impl = dispatch.settle(s, kernel, self.impl)
        return _Batch(s, scale, rows, kernel, impl)

    def lambdas(self, term_weights: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return the weight of each term; term_weights override the objective's weights. Raises InputError."""
        return {**self.terms, **_checked(term_weights or {}, self.terms)}


def active_terms(lambdas: Mapping[str, float]) -> set[str]:
    """Return the terms with a positive weight."""
    return {name for name, weight in lambdas.items() if weight > 0}


def kernel_values(names: set[str], *log_means: Tensor) -> dict[str, Tensor]:
    """Return the terms of KERNEL_TERMS, computed from the log kernel means: within x, within y, between."""
    return {name: KERNEL_TERMS[name](*log_means) for name in sorted(names & set(KERNEL_TERMS))}


def weighted(
    values: Mapping[str, Tensor],
    lambdas: Mapping[str, float],
    s: Samples,
    together: tuple[Tensor, Mapping[str, Tensor]] | None = None,
) -> LossTerms:
    """Return the terms in the dtype of the samples and their weighted sum; without terms, a 0 in the same graph.

    together: the weighted sum of other terms, and these, from one operation.
    """
    values = {name: value.to(s.dtype) for name, value in values.items()}
    parts = {name: _times(lambdas[name], value) for name, value in values.items()}
    summands = list(parts.values())
    if together is not None:
        summands.insert(0, together[0])
        values |= together[1]
        parts |= {name: _times(lambdas[name], value) for name, value in together[1].items()}
    total = reduce(torch.add, summands) if summands else s.x.sum().to(s.dtype) * 0
    return LossTerms(total, {name: value.detach() for name, value in values.items()}, lambdas, parts)


def _times(weight: float, value: Tensor) -> Tensor:
    return value if weight == 1 else weight * value


@dataclass(frozen=True)
class _Batch:
    samples: Samples
    scale: Tensor
    rows: RowInfo
    kernel: Kernel
    impl: str


def _terms(lambdas: Mapping[str, float], batch: _Batch, finite: bool) -> LossTerms:
    """Return the terms of positive weight; each product of features is computed once.

    finite: whether the rows are known to be finite; op.joint accepts no others, else they are checked here.
    """
    s, kernel, names = batch.samples, batch.kernel, active_terms(lambdas)
    kernel_terms, together = names & set(KERNEL_TERMS), None
    op = dispatch.implementation(batch.impl, s.x, s.y, kernel if kernel_terms else None)
    if INFO_NCE in names and kernel_terms and op.joint is not None:
        weights = {name: lambdas[name] for name in (INFO_NCE, *sorted(kernel_terms))}
        together = op.joint(s.x, s.y, batch.scale, batch.rows, kernel, weights)
    if together is None and not finite:
        for name, side in zip(NAMES, (s.x, s.y), strict=True):
            check_finite(name, side)
    values: dict[str, Tensor] = {}
    if together is not None:
        names -= {INFO_NCE, *KERNEL_TERMS}
    elif INFO_NCE in names and kernel_terms:
        values[INFO_NCE], between = op.fused(s.x, s.y, batch.scale, batch.rows, kernel)
        within = [
            dispatch.implementation(batch.impl, side, side, kernel).log_kernel_mean(side, None, kernel, weights)
            for side, weights in ((s.x, s.weights_x), (s.y, s.weights_y))
        ]
        values |= kernel_values(names, *within, between)
    elif INFO_NCE in names:
        values[INFO_NCE] = op.info_nce(s.x, s.y, batch.scale, batch.rows)
    elif kernel_terms:
        values |= kernel_values(names, *dispatch.log_kernel_means(s, kernel, batch.impl))
    if not names.isdisjoint((*PAIRED_LOSSES, *DIVERGENCES)):
        values |= _registered(names, batch)
    return weighted(values, lambdas, s, together)


def _registered(names: set[str], batch: _Batch) -> dict[str, Tensor]:
    """Return the paired losses and divergences that are computed by a function of their own."""
    s, values = batch.samples, {}
    x, y = (side.to(s.dtype) for side in (s.x, s.y))  # registered functions may not support half precision
    for name in sorted(names & set(PAIRED_LOSSES)):
        loss, ids = load("loss", PAIRED_LOSSES, name), {"ids_x": batch.rows.ids_x, "ids_y": batch.rows.ids_y}
        values[name] = loss(x, y, logit_scale=batch.scale, **ids)
    weights = {"weights_x": s.weights_x, "weights_y": s.weights_y}
    for name in sorted(names & set(DIVERGENCES) - set(KERNEL_TERMS)):
        divergence = load("divergence", DIVERGENCES, name)
        values[name] = divergence(x, y, **weights, impl=batch.impl, bandwidth=bandwidths(batch.kernel))
    return values


def _rows(s: Samples, image_ids: Ids | None, text_ids: Ids | None, need_pairs: bool, unpaired: float) -> RowInfo:
    ids_x, ids_y = pair_ids(image_ids, text_ids, s.x, s.y, need_pairs)
    if image_ids is None or (not ids_x.is_cuda and one_to_one(ids_x, ids_y)):
        return RowInfo(ids_x, ids_y, one_to_one=ids_x.shape == ids_y.shape)
    return RowInfo(ids_x, ids_y, _kernel_weights(ids_x, unpaired), _kernel_weights(ids_y, unpaired))


def _kernel_weights(ids: Tensor, unpaired: float) -> Tensor | None:
    """Return 1/m for each row, `unpaired` for unpaired rows; None if all are equal."""
    weights = id_weights(ids, unpaired)
    return None if bool((weights == weights[0]).all()) else weights


def _checked(weights: Mapping[str, float], known: Iterable[str]) -> dict[str, float]:
    known = tuple(known)
    for name in weights:
        check_choice("terms", name, known)
    return {name: check_non_negative(f"weight of {name}", weight) for name, weight in weights.items()}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "CSAlignerLoss":  # deprecated import path of csaligner 0.1
            warnings.warn(
                "csaligner.losses.objective.CSAlignerLoss is deprecated; use csaligner.CSAlignerLoss",
                DeprecationWarning,
                2,
            )
            return importlib.import_module("csaligner.distributed.loss").CSAlignerLoss
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
