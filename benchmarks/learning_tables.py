"""Tables of docs/learning_curves.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

from table_text import load, table, title_of

Record = Mapping[str, Any]
INFONCE, CS, START, DEFAULTS = "InfoNCE", "InfoNCE + D_CS", "chosen start", "defaults"
TERMS = (CS, "InfoNCE + L2", "InfoNCE + MMD")
CURVES = {
    "pairs": "training pairs",
    "pairs, 100 unpaired": "training pairs, with unpaired rows",
    "noise": "% of the pairs exchanged",
    "batch": "batch size",
    "domain": "trained on",
    "three": "modalities",
}
# metric, heading, factor, digits, sign of an improvement
MEASURES = (
    ("score", "score", 100, 1, 1),
    ("recall", "R@1", 100, 1, 1),
    ("ndcg", "nDCG", 100, 1, 1),
    ("gap", "gap", 1, 3, -1),
)


def _change(values: Sequence[float], factor: float, digits: int) -> str:
    value, low, high = (factor * v for v in values)
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _cells(records: Sequence[Record], curve: str) -> dict[tuple[str, Any], dict[str, Record]]:
    """Return (data, place) -> method -> record."""
    found: dict[tuple[str, Any], dict[str, Record]] = {}
    for r in records:
        if r["curve"] == curve:
            found.setdefault((r["data"], r["at"]), {})[r["method"]] = r
    return found


def curve_table(curve: str) -> str:
    """Return one row per data set and place: InfoNCE's score, and paired differences from it."""
    rows = []
    for (data, place), methods in _cells(load("learning_curves")["records"], curve).items():
        nce, ours = methods[INFONCE], methods[CS]["minus InfoNCE"]
        row = [title_of(data), place, f"{100 * nce['score']:.1f}", f"{nce['gap']:.3f}"]
        row += [_change(ours["score"], 100, 1), _change(ours["ndcg"], 100, 1), _change(ours["gap"], 1, 3)]
        for method in (*TERMS[1:], START, DEFAULTS):
            row.append(_change(methods[method]["minus InfoNCE"]["score"], 100, 1) if method in methods else "")
        rows.append(row)
    on = "tested on" if curve == "domain" else "data"
    head = [on, CURVES[curve], "InfoNCE: score", "gap", "D_CS: score", "nDCG", "gap"]
    return table([*head, "L2: score", "MMD: score", f"{START}: score", f"{DEFAULTS}: score"], rows)


def verdict_table() -> str:
    """Return one row per method and curve: in how many cells the interval of the difference from InfoNCE is better,
    contains 0, or is worse; and the range of the differences."""
    records, rows = load("learning_curves")["records"], []
    for method in (*TERMS, START, DEFAULTS):
        for curve, title in CURVES.items():
            cells = [m[method]["minus InfoNCE"] for m in _cells(records, curve).values() if method in m]
            if cells:
                rows.append([method, title, *(_verdict(cells, *measure) for measure in MEASURES)])
    return table(["method", "over", *(heading for _, heading, *_ in MEASURES)], rows)


def _verdict(cells: Sequence[Mapping[str, Sequence[float]]], key: str, _: str, f: float, digits: int, sign: int) -> str:
    better = sum(1 for c in cells if min(sign * c[key][1], sign * c[key][2]) > 0)
    worse = sum(1 for c in cells if max(sign * c[key][1], sign * c[key][2]) < 0)
    values = [f * c[key][0] for c in cells]
    reach = f"{min(values):+.{digits}f} to {max(values):+.{digits}f}"
    return f"{better} / {len(cells) - better - worse} / {worse} ({reach})"


def collapse_table() -> str:
    """Return gap, D_CS, R@1 and nDCG of the test pairs at some epochs, means over splits."""
    courses, rows = load("learning_curves")["collapse"], []
    for data in dict.fromkeys(c["data"] for c in courses):
        here = [c["methods"] for c in courses if c["data"] == data]
        for method in here[0]:
            epochs = [p["epoch"] for p in here[0][method]]
            shown = [0, epochs.index(20), epochs.index(40), len(epochs) - 1]

            def text(key: str, factor: float, digits: int, here: Any = here, m: str = method, at: Any = shown) -> str:
                return ", ".join(f"{factor * mean(c[m][i][key] for c in here):.{digits}f}" for i in at)

            widest = [max(p["gap"] for p in c[method]) for c in here]
            reach = f"{min(widest):.3f} to {max(widest):.3f}"
            cells = (text("cs", 1, 2), text("recall", 100, 1), text("ndcg", 100, 1))
            rows.append([title_of(data), method, text("gap", 1, 3), reach, *cells])
    head = ["data", "objective", "gap", "widest gap, by split", "D_CS", "R@1 %", "nDCG@10 %"]
    return "Before training, after 20, 40 and 80 epochs:\n\n" + table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "learning_verdict": verdict_table,
    "learning_collapse": collapse_table,
    **{f"learning_{curve.replace(', ', '_').replace(' ', '_')}": partial(curve_table, curve) for curve in CURVES},
}
