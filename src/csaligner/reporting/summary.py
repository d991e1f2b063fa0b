"""Summary of results over seeds: means, standard deviations, significance of differences, headline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

from csaligner.evaluation.score import MARGIN, MEAN_NDCG, MEAN_RECALL, MEANS, SCORE, derived_metrics
from csaligner.names import Names

from .record import MethodResult, check_results

Goal = Literal["high", "low", "zero", "half"]
Unit = Literal["percent", "points", "number"]
Verdict = Literal["better", "worse", "level", "unknown"]
DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Metric:
    """Presentation of a metric. goal: high, low, near zero, or at most one half (chance level of the probe)."""

    key: str
    label: str
    goal: Goal
    unit: Unit
    meaning: str

    def goodness(self, value: float) -> float:
        """Return a score that increases with quality."""
        rules: dict[Goal, Callable[[float], float]] = {
            "high": lambda v: v,
            "low": lambda v: -v,
            "zero": lambda v: -abs(v),
            "half": lambda v: -max(v, 0.5),
        }
        return rules[self.goal](value)


CENTROID = "gap/centroid"
_RECALLS = ("image_to_text_recall@1", "text_to_image_recall@1")

_KEY_METRICS: tuple[Metric, ...] = (
    Metric(SCORE, "Score", "high", "percent", "mean of R@1 and nDCG@10, each the mean of both kinds of query; ranks"),
    Metric(MEAN_RECALL, "Mean R@1", "high", "percent", "recall at 1, mean of the two directions"),
    Metric(
        MEAN_NDCG,
        "Mean nDCG",
        "high",
        "percent",
        "nDCG@10 of one index of {images} and {texts}, mean of {caption} and {image} queries",
    ),
    Metric(_RECALLS[0], "{I}\u2192{T} R@1", "high", "percent", "{image} query: one of its {captions} is ranked first"),
    Metric(_RECALLS[1], "{T}\u2192{I} R@1", "high", "percent", "{caption} query: its {image} is ranked first"),
    Metric("mixed_ndcg@10", "nDCG, {text} query", "high", "percent", "nDCG@10 of the mixed index, {caption} queries"),
    Metric(
        "mixed_ndcg@10/image_query",
        "nDCG, {image} query",
        "high",
        "percent",
        "nDCG@10 of the mixed index, {image} queries",
    ),
    Metric(
        "mean_mixed_recall@10",
        "Mixed R@10",
        "high",
        "percent",
        "mixed index: the item of the other modality is in the top 10, mean of {caption} and {image} queries",
    ),
    Metric(
        "modality_bias@10",
        "Bias, {text} query",
        "zero",
        "points",
        "modality bias of the top 10: 0 = balanced; above 0 = favours the query's modality; {caption} queries",
    ),
    Metric("modality_bias@10/image_query", "Bias, {image} query", "zero", "points", "the same, {image} queries"),
    Metric(CENTROID, "Gap", "low", "number", "distance of the two centroids, unit vectors"),
    Metric(MARGIN, "Margin", "high", "number", "mean cosine of pairs minus mean cosine of non-pairs"),
    Metric("gap/cs", "D_CS", "low", "number", "Cauchy-Schwarz divergence of the two samples"),
    Metric("centred_gap/cs", "Centred D_CS", "low", "number", "D_CS after centring: not a shift of the mean"),
    Metric(
        "gap/probe_accuracy",
        "Probe",
        "half",
        "percent",
        "accuracy of a linear classifier that predicts the modality; 50 % = chance",
    ),
)
HEADLINE_KEYS = (MEAN_NDCG, MEAN_RECALL, CENTROID)
FRECHET = Metric("gap/frechet", "Fréchet", "low", "number", "Fréchet distance of the Gaussians of both samples")
_BY_KEY = {m.key: m for m in (*_KEY_METRICS, FRECHET)}
KEYS = tuple(m.key for m in _KEY_METRICS)


def describe(key: str, names: Names | None = None) -> Metric:
    """Return the metric of a key; unknown keys get a default. names: of the two spaces; None: image and text."""
    if key in _BY_KEY:
        metric, fill = _BY_KEY[key], (names or Names()).fill
        return replace(metric, label=fill(metric.label), meaning=fill(metric.meaning))
    low = any(part in key for part in ("rank", "gap/", "uniformity", "fid", "kid", "cmmd")) and "effective" not in key
    shares = "recall@" in key or "ndcg@" in key or "accuracy" in key
    cosine = key.endswith("cosine")
    goal: Goal = "low" if low and not cosine else "high"
    return Metric(key, key, goal, "percent" if shares else "number", "")


@dataclass(frozen=True)
class Cell:
    """One metric of one method over its seeds. sd: sample standard deviation, None with one seed.

    low, high: bounds of the 95 % interval, averaged over seeds; None if not measured.
    """

    values: tuple[float, ...]
    mean: float
    sd: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Summary:
    """Methods in the given order; cells[method][key] exists if at least one seed has a finite value."""

    methods: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    keys: tuple[str, ...]
    seconds: Mapping[str, float]
    n_seeds: int

    def cell(self, method: str, key: str) -> Cell | None:
        return self.cells[method].get(key)

    def verdict(self, ours: str, other: str, key: str) -> Verdict:
        """Return whether `ours` differs clearly from `other`.

        Several seeds: the difference of the means must exceed sqrt(sd_a^2 + sd_b^2), the standard deviation of a
        difference of two runs. One seed, or two deterministic methods: the 95 % intervals must not overlap; "unknown"
        without intervals.
        """
        a, b = self.cell(ours, key), self.cell(other, key)
        if a is None or b is None:
            return "unknown"
        goodness = describe(key).goodness
        good_a, good_b = [goodness(v) for v in a.values], [goodness(v) for v in b.values]
        difference = fmean(good_a) - fmean(good_b)
        if a.sd is not None and b.sd is not None and a.sd + b.sd > 0:
            clear = abs(difference) > math.hypot(stdev(good_a), stdev(good_b))
        elif a.low is None or a.high is None or b.low is None or b.high is None:
            return "unknown"
        else:
            clear = difference != 0 and (a.low > b.high or b.low > a.high)
        if not clear:
            return "level"
        return "better" if difference > 0 else "worse"

    def best(self, key: str) -> str | None:
        """Return the method with verdict "better" against every other one (shown in bold), or None."""
        present = [m for m in self.methods if self.cell(m, key) is not None]
        if len(present) < 2:
            return None
        for m in present:
            if all(self.verdict(m, other, key) == "better" for other in present if other != m):
                return m
        return None


def _with_derived(result: MethodResult) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Add derived metrics to results of earlier versions; the interval of a mean is the mean of the bounds, which is
    conservative."""
    metrics = {k: float(v) for k, v in result.metrics.items()}
    intervals = {k: (float(v[0]), float(v[1])) for k, v in result.intervals.items()}
    metrics = derived_metrics(metrics) | metrics
    for name, (one, two) in MEANS.items():
        if name in metrics and name not in intervals and one in intervals and two in intervals:
            low, high = (fmean((intervals[one][end], intervals[two][end])) for end in (0, 1))
            intervals[name] = (low, high)
    return metrics, intervals


def _cell(values: list[float], bounds: list[tuple[float, float]]) -> Cell | None:
    finite = tuple(v for v in values if math.isfinite(v))
    if not finite:
        return None
    known = [b for b in bounds if math.isfinite(b[0]) and math.isfinite(b[1])]
    sd = stdev(finite) if len(finite) > 1 else None
    if not known:
        return Cell(finite, fmean(finite), sd)
    return Cell(finite, fmean(finite), sd, fmean(b[0] for b in known), fmean(b[1] for b in known))


def summarise(results: Sequence[MethodResult]) -> Summary:
    """Return mean and standard deviation over seeds by method and metric. Non-finite values count as not measured.

    Raises InputError without results, or for a duplicate method and seed.
    """
    check_results(results)
    methods = tuple(dict.fromkeys(r.name for r in results))
    cells: dict[str, dict[str, Cell]] = {}
    seconds: dict[str, float] = {}
    keys: dict[str, None] = {}
    for method in methods:
        runs = [r for r in results if r.name == method]
        rows = [_with_derived(r) for r in runs]
        row_keys = dict.fromkeys(k for metrics, _ in rows for k in metrics)
        keys.update(row_keys)
        made = {k: _cell([m[k] for m, _ in rows if k in m], [i[k] for _, i in rows if k in i]) for k in row_keys}
        cells[method] = {k: c for k, c in made.items() if c is not None}
        times = [r.seconds for r in runs if r.seconds is not None and math.isfinite(r.seconds)]
        if times:
            seconds[method] = fmean(times)
    return Summary(methods, cells, tuple(keys), seconds, len({r.seed for r in results}))


def format_value(metric: Metric, value: float) -> str:
    """Format percent and points with one decimal, without the unit, and numbers with 3 digits."""
    if metric.unit in ("percent", "points"):
        text = f"{100 * value:+.1f}" if metric.unit == "points" else f"{100 * value:.1f}"
        text = "0.0" if float(text) == 0 else text
    elif value == int(value) and abs(value) < 1e9:
        text = str(int(value))
    elif 0.001 <= abs(value) < 100:
        text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", MINUS)


def format_spread(metric: Metric, mean: float, sd: float) -> str:
    """Format a standard deviation with the decimals of its mean."""
    shown = format_value(metric, mean)
    decimals = 3 if "e" in shown else len(shown.partition(".")[2])
    return f"{sd if metric.unit == 'number' else 100 * sd:.{decimals}f}"


def format_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min"


def quote(metric: Metric, value: float) -> str:
    """Format a value with its unit."""
    return (
        format_value(metric, value) + {"percent": "\N{NO-BREAK SPACE}%", "points": " points", "number": ""}[metric.unit]
    )


_PLAIN = {
    MEAN_NDCG: "search in a mixed index",
    MEAN_RECALL: "retrieval at rank 1",
    CENTROID: "closing the gap between {images} and {texts}",
}


def headline(summary: Summary, ours: str, rival: str | None, names: Names | None = None) -> list[str]:
    """Return the result in sentences, most important first; claims follow `verdict`. rival: the method to compare with.

    Includes other methods that are better than `ours` on a headline metric. names: of the two spaces.
    """
    keys = [k for k in HEADLINE_KEYS if summary.cell(ours, k) is not None]
    plain = {k: (names or Names()).fill(words) for k, words in _PLAIN.items()}
    if not keys:
        return [f"No headline metric was measured for {ours}."]
    if rival is None or rival == ours:
        parts = [f"{quote(describe(k), _mean(summary, ours, k))} for {plain[k]}" for k in keys]
        alone = ["No other method was measured."] if len(summary.methods) == 1 else []
        return [f"{ours} reaches {_join(parts)}.", *alone, *_better(summary, ours, keys, plain)]
    keys = [k for k in keys if summary.cell(rival, k) is not None]
    groups: dict[Verdict, list[str]] = {"better": [], "worse": [], "level": [], "unknown": []}
    for k in keys:
        a, b = (quote(describe(k), _mean(summary, m, k)) for m in (ours, rival))
        groups[summary.verdict(ours, rival, k)].append(f"{plain[k]} ({a} against {b})")
    return [*_sentences(groups, ours, rival), *_better(summary, ours, keys, plain, but=rival)]


def _better(summary: Summary, ours: str, keys: Sequence[str], plain: Mapping[str, str], but: str = "") -> list[str]:
    """Return a sentence for each other method that is better than `ours` on one of the metrics."""
    sentences = []
    for other in summary.methods:
        ahead = [k for k in keys if other not in {ours, but} and summary.verdict(ours, other, k) == "worse"]
        if ahead:
            what = [f"{plain[k]} ({quote(describe(k), _mean(summary, other, k))})" for k in ahead]
            sentences.append(f"{other} is better than {ours} at {_join(what)}.")
    return sentences


def _sentences(groups: Mapping[Verdict, list[str]], ours: str, rival: str) -> list[str]:
    sentences = []
    if groups["better"]:
        sentences.append(f"{ours} is better than {rival} at {_join(groups['better'])}.")
    if groups["worse"]:
        start = "It is worse at" if groups["better"] else f"{ours} is worse than {rival} at"
        sentences.append(f"{start} {_join(groups['worse'])}.")
    if groups["level"]:
        start = "There is no clear difference" if sentences else f"{ours} and {rival} do not differ clearly"
        sentences.append(f"{start} at {_join(groups['level'])}.")
    if groups["unknown"]:
        sentences.append(
            f"One run without intervals cannot decide between {ours} and {rival} at {_join(groups['unknown'])}."
        )
    return sentences or [f"{ours} and {rival} share no headline metric."]


def _mean(summary: Summary, method: str, key: str) -> float:
    cell = summary.cell(method, key)
    assert cell is not None
    return cell.mean


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
