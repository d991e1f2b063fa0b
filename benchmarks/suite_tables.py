"""Tables of `csaligner compare --suite`: ranks over all data, each data set, and the sweeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import Any

from measures import differences, measures_table
from table_text import RESULTS, load, table, title_of

from csaligner.comparison.sweep import Point, best
from csaligner.evaluation.score import MEAN_NDCG, MEAN_RECALL, SCORE
from csaligner.reporting.comparison import pareto_front
from csaligner.reporting.record import MethodResult
from csaligner.reporting.summary import summarise

NAME = "suite"
SWEEP = ((SCORE, 100, 1), (MEAN_RECALL, 100, 1), (MEAN_NDCG, 100, 1), ("gap/centroid", 1, 3))


def rank_text() -> str:
    """Return the table of ranks over all data; methods that cannot be told apart from the first are in bold."""
    content = load(NAME)
    names = list(content["datasets"])
    head = ["method", "mean rank (95 %)", *map(title_of, names), "minus the first (95 %)", "rank by score"]
    rows = []
    for rank in content["ranks"]:
        method = rank["method"]
        value, low, high = rank["behind"]
        level = rank["everywhere"] and low <= 0
        cells = [
            f"{rank['ranks'][name]:.1f} / {100 * rank['scores'][name]:.1f}" if name in rank["ranks"] else ""
            for name in names
        ]
        mean = f"{rank['mean_rank']:.1f} ({rank['interval'][0]:.1f} to {rank['interval'][1]:.1f})"
        behind = f"{value:+.1f} ({low:+.1f} to {high:+.1f})" if value or high else ""
        name = f"**{method}**" if level else method if rank["everywhere"] else f"{method} *"
        rows.append([name, mean, *cells, behind, f"{rank['score_rank']:.1f}"])
    return table(head, rows)


def family_text() -> str:
    """Return the mean rank of each row of CS-Aligner alone among the other methods (benchmarks/suite_details.py)."""
    rows = []
    for r in load(NAME)["families"]:
        value, low, high = r["minus_other"]
        other = f"{r['best_other']} {r['other_rank']:.1f}"
        scores = f"{r['score_rank']:.1f} / {r['best_score_rank_of_others']:.1f}"
        rows.append([r["method"], f"{r['mean_rank']:.1f}", other, f"{value:+.1f} ({low:+.1f} to {high:+.1f})", scores])
    return table(["row", "mean rank", "best other method", "minus that (95 %)", "rank by score / best of others"], rows)


def minus_default_text(metric: str) -> str:
    """Return a metric of every method minus that of the default, in points; intervals that exclude 0 are in bold."""
    content = load(NAME)
    cells = {(r["method"], r["dataset"]): r[metric] for r in content["minus_default"]}
    rows = []
    for method in (rank["method"] for rank in content["ranks"] if rank["method"] != "defaults"):
        row = [method]
        for dataset in content["datasets"]:
            value, low, high = (100 * x for x in cells.get((method, dataset), (0, 0, 0)))
            text = f"{value:+.1f} ({low:+.1f} to {high:+.1f})" if (method, dataset) in cells else ""
            row.append(f"**{text}**" if low > 0 or high < 0 else text)
        rows.append(row)
    return table(["method", *map(title_of, content["datasets"])], rows)


def data_text() -> str:
    """Return a table of the data, with the budget and the commit above it."""
    content = load(NAME)
    budget = content["budget"]
    commit = " and ".join(str(commit)[:7] for commit in content["commits"])
    versions = ", ".join(f"{name} {version}" for name, version in content["provenance"]["versions"].items())
    trials = (
        f"{budget['trials']} settings for every method with settings, each tried on {budget['inner']} validation part"
    )
    if budget["trial_images"]:
        trials += f" and at most {budget['trial_images']} training images"
    note = f"Commit {commit}; {versions}. {trials}; {budget['seeds']} training seeds.\n\n"
    rows = [
        [
            title_of(name),
            f"`{name}`",
            about["train_images"],
            about["test_images"],
            about["test_captions"],
            " / ".join(map(str, about["dims"])),
            about["folds"],
        ]
        for name, about in content["datasets"].items()
    ]
    return note + table(["data", "name", "training images", "test images", "captions", "dimensions", "folds"], rows)


def dataset_text(dataset: str) -> str:
    """Return the table of all methods on one data set; those on the Pareto front are in bold."""
    content = load(NAME)
    metrics = {r["method"]: r["metrics"] for r in content["results"] if r["dataset"] == dataset}
    seeds = range(content["budget"]["seeds"])
    results = [
        MethodResult(method, seed, {key: values[seed % len(values)] for key, values in found.items()})
        for method, found in metrics.items()
        for seed in seeds
    ]
    rows = {method: {key: fmean(values) for key, values in found.items()} for method, found in metrics.items()}
    tuned = content["settings"].get(dataset, {})
    chosen = {method: _ranges(tuned.get(method, [])) for method in metrics}
    changes = differences(content["differences"], dataset)
    skipped = "; ".join(f"{name} {reason}" for name, reason in content["left_out"].get(dataset, {}).items())
    text = measures_table(rows, changes, pareto_front(summarise(results)), chosen)
    return text + (f"\n\nSkipped: {skipped}." if skipped else "")


def _ranges(settings: list[dict[str, float]]) -> str:
    """Format tuned settings, as ranges over folds."""
    found = []
    for key in settings[0] if settings else ():
        low, high = (f(s[key] for s in settings) for f in (min, max))
        found.append(f"{key} {low:.3g}" if low == high else f"{key} {low:.3g} to {high:.3g}")
    return "; ".join(found)


def sweep_text(dataset: str) -> str:
    """Return a table for each grid of two settings, and the automatic settings compared with the best grid point."""
    points = [Point(**p) for p in load(NAME)["points"] if p["dataset"] == dataset]
    blocks = []
    for grid in dict.fromkeys(p.grid for p in points if p.grid != "auto"):
        mine = [p for p in points if p.grid == grid]
        row, *more = mine[0].settings
        column = more[0] if more else None
        columns = list(dict.fromkeys(p.settings[column] for p in mine)) if column else [""]
        rows = [
            [value, *(_cell(p) for p in mine if p.settings[row] == value)]
            for value in dict.fromkeys(p.settings[row] for p in mine)
        ]
        head = f"{_short(row)} \\ {_short(column)}" if column else _short(row)
        blocks.append(table([head, *columns], rows))
    chosen = [("best grid point", best([p for p in points if p.grid != "auto"]))]
    chosen += [("automatic", p) for p in points if p.grid == "auto"]
    rows = [[how, ", ".join(f"{_short(k)} {v}" for k, v in p.settings.items()), _cell(p)] for how, p in chosen]
    blocks.append(table(["", "setting", "score / R@1 / nDCG / gap"], rows))
    about = "Cells: score / R@1 % / nDCG@10 % of the mixed index / gap; means of caption and image queries."
    return f"{about}\n\n" + "\n\n".join(blocks)


def _short(name: str) -> str:
    return {"cauchy_schwarz": "lambda", "bandwidth": "sigma"}.get(name.rpartition(".")[2], name.rpartition(".")[2])


def _cell(point: Point) -> str:
    means: Mapping[str, Any] = point.means()
    return " / ".join(f"{factor * means[key]:.{digits}f}" for key, factor, digits in SWEEP)


def _tables() -> dict[str, Callable[[], str]]:
    if not (RESULTS / f"{NAME}.json").exists():
        return {}
    content = load(NAME)
    found: dict[str, Callable[[], str]] = {
        "suite_ranks": rank_text,
        "suite_data": data_text,
        "suite_families": family_text,
        "suite_score_minus_default": partial(minus_default_text, SCORE),
        "suite_recall_minus_default": partial(minus_default_text, MEAN_RECALL),
    }
    found |= {f"suite_{name}": partial(dataset_text, name) for name in content["datasets"]}
    swept = dict.fromkeys(point["dataset"] for point in content["points"])
    return found | {f"sweep_{name}": partial(sweep_text, name) for name in swept}


TABLES = _tables()
