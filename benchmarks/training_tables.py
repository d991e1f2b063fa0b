"""Tables of docs/training.md and docs/data.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from measures import measures_table
from table_text import load, table, table_of, title_of


def big_store_table() -> str:
    content = load("big_store")
    s, f, m = content["setting"], content["figures"], content["machine"]
    cells = {
        "pairs": f"{s['rows']:,}",
        "dimensions": s["dim"],
        "store": f"{s['store_mb'] / 1024:.2f} GiB",
        "batch": s["batch"],
        "steps": f"{f['steps']:.0f}",
        "peak resident memory": f"{f['peak_mb'] / 1024:.2f} GiB",
        "waiting for data": f"{100 * f['data_wait_share']:.2f} %",
    }
    return f"{m['cpu']}, {m['threads']} thread(s), load {m['load']} at the end.\n\n" + table_of([cells])


FITS = {
    "fit": "`CSAligner()`, the first fold rejects training",
    "folds": "`CSAligner()`, three folds reject it",
    "auto": "fixed start, no gate: 40 epochs",
    "untrained": "untrained (`epochs=0`)",
}


def fit_table() -> str:
    rows = []
    for record in load("fit")["records"]:
        kind, _, size = record["work"].partition(":")
        pairs, dim = map(int, size.split("x"))
        before, now = record["before"], record["now"]
        rows.append(
            [
                FITS[kind],
                f"{pairs:,} x {dim:,}",
                record["before_commit"][:7],
                f"{before['median_seconds']:.1f}",
                f"{now['median_seconds']:.1f}",
                f"{record['ratio']:.3g}",
                record["rounds"],
                f"{before['peak_mb']:,.0f}",
                f"{now['peak_mb']:,.0f}",
            ]
        )
    head = ["fit", "pairs x dimensions", "before", "s before", "s now", "times faster", "rounds", "MB before", "MB now"]
    return table(head, rows)


def balance_table() -> str:
    records = load("balance")["records"]
    rows = {r["weight"]: {k: v for k, v in r.items() if isinstance(v, float)} for r in records}
    return measures_table(rows, {}).replace("| method |", "| weight of D_CS |", 1)


def embed_table() -> str:
    content = load("embed")
    m, median = content["machine"], content["median"]
    cells = {
        "pictures": content["pictures"],
        "encoder only, images/s": f"{median['own']:.1f}",
        "`embed`, images/s": f"{median['embed']:.1f}",
        "share": f"{100 * content['share_of_own_rate']:.0f} %",
        "encoder only, one batch per core": f"{median['own_streams']:.1f}",
        "reading and decoding, core ms": f"{content['decode_ms']:.1f}",
        "encoding, core ms": f"{content['encode_ms']:.1f}",
    }
    return f"{m['cpu']}, {m['threads']} threads, load {m['load']} at the end.\n\n" + table_of([cells])


Record = dict[str, Any]
DATA = ("clip_coco_500", "convirt_500", "videoclip_100", "openmoji")
# heading, metric, factor, digits
SHOWN = (
    ("score", "score", 100, 1),
    ("R@1", "recall", 100, 1),
    ("nDCG, caption", "ndcg", 100, 1),
    ("nDCG, image", "ndcg_image", 100, 1),
    ("pair margin", "margin", 1, 3),
    ("gap", "gap", 1, 3),
    ("D_CS", "cs", 1, 3),
)


def by_setting(records: Sequence[Record], **kept: str) -> dict[tuple[str, str], list[Record]]:
    """Return the records with these values by sigma and lambda."""
    found: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        if all(r[key] == value for key, value in kept.items()):
            found.setdefault((r["sigma"], r["weight"]), []).append(r)
    return found


def validated(records: Sequence[Record]) -> float:
    """Return the mean validation score."""
    return float(mean(r["val"]["score"] for r in records))


def random_start_table() -> str:
    """Return one row per data set and sigma, at the lambda with the best validation score: test metrics."""
    content = load("random_start")
    rows = []
    for data in DATA:
        cells = by_setting(content["records"], adapters="linear", data=data)
        for sigma in dict.fromkeys(s for s, _ in cells):
            best = max((w for s, w in cells if s == sigma), key=lambda w: validated(cells[sigma, w]))
            rows.append(
                [
                    title_of(data),
                    sigma or "InfoNCE alone",
                    best if sigma else "",
                    *_test(cells[sigma, best], cells["", "0"]),
                ]
            )
    return table(["data", "sigma", "lambda", *HEAD], rows)


def random_mean_table() -> str:
    """Return the validation score by sigma and lambda, mean over data sets, and the same of the pair margin."""
    content = load("random_start")
    of_data = [by_setting(content["records"], adapters="linear", data=data) for data in DATA]
    weights = list(dict.fromkeys(w for s, w in of_data[0] if s))
    rows = []
    for sigma in dict.fromkeys(s for s, _ in of_data[0] if s):
        scores = [100 * mean(validated(cells[sigma, w]) for cells in of_data) for w in weights]
        margins = [mean(mean(r["val"]["margin"] for r in cells[sigma, w]) for cells in of_data) for w in weights]
        rows.append([sigma, *(f"{s:.1f} / {m:.3f}" for s, m in zip(scores, margins, strict=True))])
    alone = 100 * mean(validated(cells["", "0"]) for cells in of_data)
    note = f"Validation score / pair margin, mean of {len(DATA)} data sets; InfoNCE alone: {alone:.1f}.\n\n"
    return note + table(["sigma", *(f"lambda {w}" for w in weights)], rows)


def frozen_side_table() -> str:
    """Return every setting of the text side: test metrics, means over seeds."""
    rows = []
    for data in DATA:
        cells = by_setting(load("random_start")["records"], adapters="text side", data=data)
        for (sigma, weight), mine in cells.items():
            rows.append(
                [title_of(data), sigma or "InfoNCE alone", weight if sigma else "", *_test(mine, cells["", "0"])]
            )
    return table(["data", "sigma", "lambda", *HEAD], rows)


def _test(records: Sequence[Record], alone: Sequence[Record]) -> list[str]:
    """Return test means, and the difference of the score to InfoNCE alone with the same seeds, in points."""
    cells = []
    for _, key, factor, digits in SHOWN:
        cells.append(f"{mean(factor * r['test'][key] for r in records):.{digits}f}")
    of_seed = {r["seed"]: r["test"]["score"] for r in alone}
    gains = [100 * (r["test"]["score"] - of_seed[r["seed"]]) for r in records]
    error = stdev(gains) / len(gains) ** 0.5
    cells.insert(1, "" if records is alone else f"{mean(gains):+.1f} \N{PLUS-MINUS SIGN} {error:.1f}")
    return cells


HEAD = ["score", "- InfoNCE", *(heading for heading, *_ in SHOWN[1:])]
TABLES: dict[str, Callable[[], str]] = {
    "big_store": big_store_table,
    "fit": fit_table,
    "balance": balance_table,
    "embed": embed_table,
    "random_mean": random_mean_table,
    "random_linear": random_start_table,
    "random_text_side": frozen_side_table,
}
