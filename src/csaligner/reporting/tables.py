"""Results table for the terminal, and results.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from csaligner.checks import InputError
from csaligner.evaluation.score import MEAN_NDCG, MEAN_RECALL, SCORE
from csaligner.files import write_text
from csaligner.names import Names
from csaligner.parsing import parse_json

from .record import MethodResult, check_results
from .summary import (
    CENTROID,
    DASH,
    Metric,
    Summary,
    describe,
    format_seconds,
    format_spread,
    format_value,
    summarise,
)

TERMINAL_KEYS = (
    SCORE,
    MEAN_RECALL,
    MEAN_NDCG,
    "modality_bias@10",
    "modality_bias@10/image_query",
    CENTROID,
    "gap/cs",
)
_OWN_FIELDS = ("method", "seed", "split", "seconds", "intervals", "provenance")


def has_bold(summary: Summary, keys: Sequence[str]) -> bool:
    """Return whether one of these metrics has a bold value."""
    return any(summary.best(key) is not None for key in keys)


def rule_of_bold(summary: Summary, *, bold: bool, equal: Sequence[str] = ()) -> str:
    """Return the caption that explains bold values. bold: whether there are any. equal: methods that are all the
    untrained alignment, since no training was kept."""
    if not bold:
        seeds = f"mean ± sd over {summary.n_seeds} seeds" if summary.n_seeds > 1 else "one seed"
        if equal:
            return f"{seeds}; {' and '.join(equal)} are both the untrained alignment: no training was kept"
        return f"{seeds}; no single method is significantly better than all others"
    if summary.n_seeds > 1:
        return (
            f"mean ± sd over {summary.n_seeds} seeds; bold: better than every other method by more than "
            "the standard deviation over seeds"
        )
    return "one seed; bold: significantly better than every other method (95 % intervals do not overlap)"


def heading_unit(metric: Metric) -> str:
    return {"percent": "%", "points": "points", "number": ""}[metric.unit]


def print_table(
    results: Sequence[MethodResult], console: Console, names: Names | None = None, equal: Sequence[str] = ()
) -> None:
    """Print a table with methods as rows and key metrics as columns; metrics without values are omitted. names: of the
    two spaces, None: image and text. equal: as in rule_of_bold."""
    summary = summarise(results)
    metrics = [describe(k, names) for k in TERMINAL_KEYS if any(summary.cell(m, k) for m in summary.methods)]
    bold = has_bold(summary, [m.key for m in metrics])
    rule = rule_of_bold(summary, bold=bold, equal=equal)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold")
    for metric in metrics:
        unit = heading_unit(metric)
        table.add_column(
            Text(metric.label.replace(" ", "\n") + (f"\n{unit}" if unit else "")), justify="right", no_wrap=True
        )
    timed = any(summary.seconds.get(method) is not None for method in summary.methods)
    if timed:
        table.add_column("time", justify="right", no_wrap=True)
    for method in summary.methods:
        row = [Text(method)]
        for metric in metrics:
            bold = summary.best(metric.key) == method
            row.append(Text(_terminal_cell(summary, method, metric), style="bold" if bold else ""))
        seconds = summary.seconds.get(method)
        time = Text(DASH if seconds is None else format_seconds(seconds))
        table.add_row(*row, *([time] if timed else []))
    console.print(table)
    console.print(f"{rule}\n", highlight=False, soft_wrap=True, markup=False)


def _terminal_cell(summary: Summary, method: str, metric: Metric) -> str:
    cell = summary.cell(method, metric.key)
    if cell is None:
        return DASH
    text = format_value(metric, cell.mean)
    return text if cell.sd is None else f"{text}\n±{format_spread(metric, cell.mean, cell.sd)}"


def write_results_json(
    results: Sequence[MethodResult], path: str | Path, *, provenance: Mapping[str, Any] | None = None
) -> None:
    """Write a list with one flat object per method and seed, atomically.

    Each object contains method, seed, split, seconds, the metrics by name, intervals ({name: [low, high]}) and
    `provenance` (versions, commit, store hash ...) if given. Non-finite values become null. Training curves are in
    metrics.jsonl.
    """
    check_results(results)
    rows = [_as_row(r, provenance) for r in results]
    write_text(Path(path), json.dumps(rows, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_results_json(path: str | Path) -> list[MethodResult]:
    """Read a file written by `write_results_json`; null becomes NaN. Raises InputError for any other file."""
    try:
        rows = parse_json(Path(path).read_text(encoding="utf-8"))
        return [_from_row(row) for row in rows]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a results.json") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path}: wanted a list of objects with method and seed") from None


def _as_row(result: MethodResult, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    clash = [k for k in result.metrics if k in _OWN_FIELDS]
    if clash:
        raise InputError(f"results: the metric name {clash[0]!r} is reserved; rename the metric")
    row: dict[str, Any] = {"method": result.name, "seed": result.seed, "split": result.split}
    row["seconds"] = None if result.seconds is None else _or_null(result.seconds)
    row.update({k: _or_null(v) for k, v in result.metrics.items()})
    row["intervals"] = {k: [_or_null(end) for end in v] for k, v in result.intervals.items()}
    if provenance:
        row["provenance"] = dict(provenance)
    return row


def _or_null(value: float) -> float | int | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int) else number


def _from_row(row: Mapping[str, Any]) -> MethodResult:
    def number(value: float | None) -> float:
        return math.nan if value is None else value

    return MethodResult(
        name=row["method"],
        seed=row["seed"],
        split=row["split"],
        seconds=row["seconds"],
        metrics={k: number(v) for k, v in row.items() if k not in _OWN_FIELDS},
        intervals={k: [number(end) for end in v] for k, v in row["intervals"].items()},
    )
