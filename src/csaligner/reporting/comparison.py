"""Comparison page: a figure and a table of all methods with their tuned settings, per dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from csaligner.evaluation.score import MARGIN, MEAN_NDCG, MEAN_RECALL, SCORE

from .page import write_page
from .plots import scatter_panel
from .record import MethodResult
from .summary import CENTROID, MINUS, Summary, describe, summarise

TABLE_KEYS = (
    SCORE,
    MEAN_RECALL,
    MEAN_NDCG,
    "mixed_ndcg@10",
    "mixed_ndcg@10/image_query",
    "mean_mixed_recall@10",
    "modality_bias@10",
    "modality_bias@10/image_query",
    CENTROID,
    MARGIN,
    "gap/cs",
    "gap/frechet",
    "centred_gap/cs",
    "gap/probe_accuracy",
    "clustering/ami_category",
)
FRONT_KEYS = (MEAN_RECALL, MEAN_NDCG, CENTROID)


@dataclass(frozen=True)
class Interval:
    """A difference with its 95 % interval, as fractions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """In points: value (low to high)."""
        value, low, high = (f"{100 * v:+.1f}".replace("-", MINUS) for v in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class DatasetComparison:
    """results: one entry per method and seed. about: method -> one-line description. settings: method -> tuned settings
    as text. left_out: skipped method -> reason. differences: other -> method -> paired difference of the score."""

    name: str
    results: Sequence[MethodResult]
    about: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    differences: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodRank:
    """Ranks of one method; 1 is best.

    ranks, scores: dataset -> mean of the ranks by R@1, nDCG@10 of caption queries, nDCG@10 of image queries and gap;
    and the score, a fraction. mean_rank: over datasets; interval: 95 % over bootstrap samples of the test images,
    training as it is. behind: mean rank minus that of the best method of all datasets, with its paired interval.
    score_rank: mean over datasets of the rank by score alone. everywhere: whether it applies to every dataset; other
    methods have means over those they apply to.
    """

    method: str
    ranks: Mapping[str, float]
    scores: Mapping[str, float]
    mean_rank: float
    interval: tuple[float, float]
    behind: tuple[float, float, float]
    score_rank: float
    everywhere: bool


def pareto_front(summary: Summary, keys: Sequence[str] = FRONT_KEYS) -> list[str]:
    """Return the methods on the Pareto front of the means of `keys`."""
    metrics = [describe(key) for key in keys]
    points = {}
    for method in summary.methods:
        cells = [summary.cell(method, key) for key in keys]
        if all(cells):
            points[method] = tuple(m.goodness(c.mean) for m, c in zip(metrics, cells, strict=True) if c)
    return [
        method
        for method, own in points.items()
        if not any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in points.values())
    ]


def write_comparison(
    title: str, intro: str, datasets: Sequence[DatasetComparison], path: Path, ranks: Sequence[MethodRank] = ()
) -> None:
    """Write the page (UTF-8, atomically); it loads nothing from the network. ranks: of all datasets, shown first."""
    names = [data.name for data in datasets]
    sections = [_section(data) for data in datasets]
    values = {"names": [*(["ranks"] if ranks else []), *names], "ranked": names, "ranks": [_ranked(r) for r in ranks]}
    write_page("comparison.html", {**values, "title": title, "intro": intro, "sections": sections}, path)


def _ranked(rank: MethodRank) -> dict[str, Any]:
    """Return the texts of a row of the first table."""
    return {
        "method": rank.method,
        "cells": {name: (f"{rank.ranks[name]:.1f}", f"{100 * rank.scores[name]:.1f}") for name in rank.ranks},
        "mean": f"{rank.mean_rank:.1f} ({rank.interval[0]:.1f} to {rank.interval[1]:.1f})",
        "score": f"{rank.score_rank:.1f}",
        "everywhere": rank.everywhere,
    }


def _section(data: DatasetComparison) -> dict[str, Any]:
    summary = summarise(data.results)
    front = pareto_front(summary)
    return {
        "name": data.name,
        "summary": summary,
        "front": front,
        "scatter": _scatter(summary, front),
        "metrics": [describe(key) for key in TABLE_KEYS if any(summary.cell(m, key) for m in summary.methods)],
        "notes": {
            method: " · ".join(filter(None, (data.about.get(method, ""), data.settings.get(method, ""))))
            for method in summary.methods
        },
        "skipped": data.left_out,
        "differences": data.differences,
    }


def _scatter(summary: Summary, front: Sequence[str]) -> Markup:
    points = []
    for method in summary.methods:
        x, y, gap = (summary.cell(method, key) for key in FRONT_KEYS)
        if x and y and gap:
            points.append((method, 100 * x.mean, 100 * y.mean, gap.mean, method in front))
    return scatter_panel(points, "mean R@1 (%)", "nDCG@10, mixed index (%)")
