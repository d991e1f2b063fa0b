"""ModalitiesLoss: InfoNCE and a divergence for two or more modalities."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from csaligner.checks import InputError, check_choice, check_length, check_non_negative, nearest
from csaligner.divergences import cauchy_schwarz, hoelder
from csaligner.ops import dispatch
from csaligner.ops.arguments import Ids, samples, scale_of, whole_numbers
from csaligner.ops.bandwidth import DEFAULT_BANDWIDTH, Bandwidth, check_bandwidth
from csaligner.ops.contrastive import RowInfo
from csaligner.ops.kernels import KERNELS, Kernel, make_kernel
from csaligner.ops.reference import id_weights, log_weights
from csaligner.ops.tiles import compute_dtype, uncompiled
from csaligner.types import LossTerms

from .objective import INFO_NCE

CS, HOELDER = "cauchy_schwarz", "hoelder"

Pair = tuple[str, str]


class ModalitiesLoss(nn.Module):
    """mean over pairs of InfoNCE + weight * D, for any number of named modalities.

    divergence: "cauchy_schwarz", D = the mean of D_CS over all pairs of modalities, or "hoelder", one divergence of all
    modalities (divergences.hoelder). With two modalities, both equal CSAlignerLoss.
    pairs: the pairs of modalities in InfoNCE, such as [("image", "english")]; default: all pairs. D always includes all
    modalities, so images and German texts without common rows are aligned through it. bandwidth: shared by all
    modalities; "median" uses the pooled rows. kernel, impl: as in CSAlignerLoss. Raises InputError.
    Source: CS-Aligner (arXiv 2502.17028) eq. 9, for pairs; Lu et al. 2024 (arXiv 2405.04061) for the other divergence.
    """

    def __init__(
        self,
        weight: float = 1.0,
        divergence: str = CS,
        pairs: Iterable[Pair] = (),
        bandwidth: Bandwidth | Sequence[Bandwidth] = DEFAULT_BANDWIDTH,
        kernel: str = "gaussian",
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.weight = check_non_negative("weight", weight)
        self.divergence = check_choice("divergence", divergence, (CS, HOELDER))
        self.pairs = list(dict.fromkeys(_as_pair(pair) for pair in pairs))
        check_bandwidth(bandwidth)
        self.bandwidth, self.kernel = bandwidth, check_choice("kernel", kernel, KERNELS)
        self.impl = check_choice("impl", impl, dispatch.IMPLEMENTATIONS)

    @uncompiled
    def forward(
        self, features: Mapping[str, Tensor], logit_scale: Tensor | float, ids: Mapping[str, Ids] | None = None
    ) -> LossTerms:
        """Return the loss terms of a batch; call backward on `.total`.

        features: name -> (N_k, d), unit rows in one space. ids: name -> N_k integers, equal for corresponding rows of
        different modalities, -1: unpaired; None: rows i of all modalities correspond.
        Terms are named "info_nce/image-english", "cauchy_schwarz/image-english" and "hoelder"; their weights are 1 and
        `weight`, divided by the number of pairs. A row has weight 1/m in D, m = number of rows of its modality with the
        same id.
        """
        clouds = _clouds(features, ids, self.impl)
        joined = self.pairs or [frozenset(pair) for pair in combinations(clouds, 2)]
        _check_joined(joined, clouds)
        first, *rest = (cloud.points for cloud in clouds.values())
        scale = scale_of(logit_scale, first)
        kernel = make_kernel(self.kernel, self.bandwidth, first, torch.cat(rest), scale)
        values, weights = self._values(clouds, joined, scale, kernel)
        values = {name: value.to(compute_dtype(first)) for name, value in values.items()}
        parts = {name: weights[name] * value for name, value in values.items()}
        total = torch.stack(list(parts.values())).sum()
        return LossTerms(total, {name: value.detach() for name, value in values.items()}, weights, parts)

    def _values(
        self, clouds: Mapping[str, Cloud], joined: Collection[frozenset[str]], scale: Tensor, kernel: Kernel
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the unweighted terms and their weights; each kernel mean is computed once."""
        pairs = list(combinations(clouds, 2))
        by_pair = self.weight > 0 and self.divergence == CS
        values: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        within = {
            name: dispatch.implementation(self.impl, c.points, c.points, kernel).log_kernel_mean(
                c.points, None, kernel, c.weights
            )
            for name, c in clouds.items()
            if by_pair
        }
        for a, b in pairs:
            nce, between = _pair_terms(clouds[a], clouds[b], {a, b} in joined, by_pair, (scale, kernel, self.impl))
            if nce is not None:
                values[f"{INFO_NCE}/{a}-{b}"], weights[f"{INFO_NCE}/{a}-{b}"] = nce, 1 / len(joined)
            if between is not None:
                values[f"{CS}/{a}-{b}"] = cauchy_schwarz.from_log_means(within[a], within[b], between)
                weights[f"{CS}/{a}-{b}"] = self.weight / len(pairs)
        if self.weight > 0 and self.divergence == HOELDER:
            weighted = [(cloud.points, log_weights(cloud.points, cloud.weights)) for cloud in clouds.values()]
            values[HOELDER], weights[HOELDER] = hoelder.of_clouds(weighted, kernel, self.impl), self.weight
        return values, weights


@dataclass(frozen=True)
class Cloud:
    """One modality. points: (N, d); ids: (N,) int64; weights: (N,) float64, row weights in D, None: all equal."""

    points: Tensor
    ids: Tensor
    weights: Tensor | None


def _clouds(features: Mapping[str, Tensor], ids: Mapping[str, Ids] | None, impl: str) -> dict[str, Cloud]:
    """Check all modalities and convert them to one dtype."""
    if len(features) < 2:
        raise InputError(f"features: got {len(features)}, wanted at least two named modalities")
    if ids is not None and set(ids) != set(features):
        raise InputError(f"ids: got {sorted(ids)}, wanted the names of the features, {sorted(features)}")
    first, *others = features
    checked = [samples(features[first], features[name], names=(first, name), half=impl == "triton") for name in others]
    points = {first: checked[0].x, **{name: s.y for name, s in zip(others, checked, strict=True)}}
    dtype = functools.reduce(torch.promote_types, (p.dtype for p in points.values()))
    found = {}
    for name, rows in points.items():
        if ids is None and len(rows) != len(points[first]):
            raise InputError(
                f"ids: missing, but {first} has {len(points[first])} rows and {name} {len(rows)}; provide ids"
            )
        own = torch.arange(len(rows), device=rows.device) if ids is None else whole_numbers(name, ids[name], rows)
        check_length(f"ids of {name}", own, len(rows), "rows")
        weights = None if ids is None else id_weights(own, unpaired=1.0)
        found[name] = Cloud(rows.to(dtype), own, weights)
    return found


def _pair_terms(
    a: Cloud, b: Cloud, joined: bool, by_pair: bool, how: tuple[Tensor, Kernel, str]
) -> tuple[Tensor | None, Tensor | None]:
    """Return InfoNCE and the log kernel mean of two modalities, from one sweep if both are needed."""
    scale, kernel, impl = how
    rows = RowInfo(a.ids, b.ids, a.weights, b.weights)
    op = dispatch.implementation(impl, a.points, b.points, kernel if by_pair else None)
    if joined and by_pair:
        return op.fused(a.points, b.points, scale, rows, kernel)
    if joined:
        return op.info_nce(a.points, b.points, scale, rows), None
    if by_pair:
        return None, op.log_kernel_mean(a.points, b.points, kernel, a.weights, b.weights)
    return None, None


def _check_joined(joined: Collection[frozenset[str]], clouds: Mapping[str, Cloud]) -> None:
    for pair in joined:
        for name in pair - set(clouds):
            raise InputError(f"pairs: {name!r} is not among the features; {nearest(name, clouds)}")
        a, b = (clouds[name].ids for name in pair)
        if not bool(torch.isin(a[a >= 0], b).any()):
            raise InputError(f"ids: {' and '.join(sorted(pair))} have no id in common; remove the pair from `pairs`")


def _as_pair(pair: Pair) -> frozenset[str]:
    names = frozenset(pair)
    if isinstance(pair, str) or len(names) != 2:
        raise InputError(f"pairs: got {pair!r}, wanted two different names such as ('image', 'english')")
    return names
