"""Tables of benchmarks/defaults.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from table_text import load, table, title_of

TWO_SIDES = ("old default", "default")
TEXT_SIDE = ("text side only, old default", "text side only", "text side only, prefer captions")


def _gain(value: Mapping[str, float]) -> str:
    return f"{value['mean']:+.1f} \N{PLUS-MINUS SIGN} {value['error']:.1f}"


def _text(rows: Callable[[dict[str, Any]], list[list[Any]]], head: list[str]) -> str:
    cells = load("defaults")["cells"]
    about = (
        f"{cells[0]['splits']} split(s), {' or '.join(map(str, sorted({c['test'] for c in cells})))} test pairs each"
    )
    return f"{about}.\n\n" + table(head, (row for cell in cells for row in rows(cell)))


def _two_sides(cell: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for name in (cell["free"], *TWO_SIDES):
        m = cell["methods"][name]
        recall = (m["image_to_text_recall@1"] + m["text_to_image_recall@1"]) / 2
        ndcg = (m["ndcg_image_query"] + m["ndcg_text_query"]) / 2
        gains = (
            ["", "", ""] if name == cell["free"] else [_gain(m[f"{of} - free"]) for of in ("recall@1", "ndcg", "score")]
        )
        rows.append(
            [title_of(cell["data"]), cell["pairs"], name, f"{recall:.1f}", f"{ndcg:.1f}", *gains, f"{m['seconds']:.1f}"]
        )
    return rows


def _text_side(cell: dict[str, Any]) -> list[list[Any]]:
    return [
        [title_of(cell["data"]), cell["pairs"], name.removeprefix("text side only, ")]
        + [f"{cell['methods'][name][key]:.1f}" for key in cell["methods"]["raw"] if key.endswith(("@1", "query"))]
        for name in ("raw", *TEXT_SIDE)
    ]


def prefer_text() -> str:
    """Return the setting start.prefer of the text side, at the largest number of pairs of each data set."""
    largest = {cell["data"]: cell for cell in load("defaults")["cells"]}
    names = dict(zip(("raw", *TEXT_SIDE[1:]), ("raw features", "`both`", "`captions`"), strict=True))
    rows = []
    for cell in largest.values():
        for name, label in names.items():
            found = cell["methods"][name]
            values = [f"{found[key]:.1f}" for key in cell["methods"]["raw"] if key.endswith(("@1", "query"))]
            rows.append([title_of(cell["data"]), cell["pairs"], label, *values])
    return table(TEXT_HEAD, rows)


def few_pairs_text() -> str:
    """Return one row per number of pairs and of unpaired rows (benchmarks/unpaired.py, few pairs)."""
    content = load("unpaired")["few pairs"]
    cells: dict[tuple[str, int, int], dict[str, Any]] = {}
    for r in content["records"]:
        cells.setdefault((r["data"], r["pairs"], r["unpaired"]), {})[r["way"]] = r
    rows = []
    for (data, pairs, unpaired), ways in cells.items():
        own = ways["default"]
        gains = [_gain(own["minus pairs alone"]) if unpaired else "", _gain(own["minus start"])]
        gains += [_gain(ways[way]["minus start"]) for way in ("InfoNCE", "CS-Aligner")]
        rows.append([title_of(data), pairs, unpaired, f"{own['recall']:.1f}", f"{own['ndcg']:.1f}", *gains])
    head = ["data", "pairs", "unpaired images, texts", "R@1", "nDCG@10", "default - start of pairs alone"]
    head += ["default - its start", "InfoNCE, no gate - start", "CS-Aligner, no gate - start"]
    return f"{content['splits']} split(s), 100 test pairs each.\n\n" + table(head, rows)


HEAD = ["data", "pairs", "method", "R@1", "nDCG@10"]
TEXT_HEAD = ["data", "pairs", "method", "R@1, image query", "R@1, caption", "nDCG, image query", "nDCG, caption"]
TABLES: dict[str, Callable[[], str]] = {
    "few_pairs": few_pairs_text,
    "defaults": partial(_text, _two_sides, [*HEAD, "R@1 - free", "nDCG - free", "score - free", "seconds"]),
    "defaults_text_side": partial(_text, _text_side, TEXT_HEAD),
    "prefer": prefer_text,
}
