"""Tables of docs/mixbench.md, from benchmarks/results/mixed_collection.json; written by benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from table_text import load, table

KINDS = {"text": "text", "image": "image", "both": "both"}
NAMES = {"openmoji": "OpenMoji", "openclipart": "Open Clip Art"}
WEIGHTS = {"0.0": "text alone", "0.5": "both, weight 0.5", "1.0": "image alone", "chosen": "both, chosen weight"}


def collections_table() -> str:
    content = load("mixed_collection")
    found = content["collections"]
    sizes = [
        f"{NAMES[name]}: {one['items']:,} drawings in {content['folds']} collections of about "
        f"{round(one['items'] / content['folds'])}"
        for name, one in found.items()
    ]
    about = f"nDCG@10 in %, {content['assignments']} random assignments of the thirds. {'; '.join(sizes)}.\n\n"
    rows = [
        [
            NAMES[name],
            method,
            _percent(values),
            *(f"{100 * values['by_kind'][kind]:.1f}" for kind in KINDS),
            "" if method == "aligned" else _difference(values["aligned_minus"]),
        ]
        for name, one in found.items()
        for method, values in one["methods"].items()
    ]
    head = ["drawings", "method", "all (95 % interval)", *(f"item is {kind}" for kind in KINDS.values())]
    return about + table([*head, "aligned minus this"], rows)


def weights_table() -> str:
    found = load("mixed_collection")["collections"]
    rows = [
        [NAMES[name], label, _percent(values), "" if key == "0.5" else _difference(values["half_minus"])]
        for name, one in found.items()
        for key, label in WEIGHTS.items()
        for values in [one["weights_of_both"][key]]
    ]
    chosen = "; ".join(
        f"{NAMES[name]}: {', '.join(f'{weight:g}' for weight in one['chosen_weights'])}" for name, one in found.items()
    )
    head = ["drawings", "vector of the items with both", "nDCG@10 % (95 % interval)", "weight 0.5 minus this"]
    return table(head, rows) + f"\n\nWeights chosen on training drawings, for the five folds: {chosen}."


def _percent(values: Mapping[str, Any]) -> str:
    low, high = values["interval"]
    return f"{100 * values['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _difference(values: Mapping[str, Any]) -> str:
    low, high = values["interval"]
    return f"{100 * values['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


TABLES: dict[str, Callable[[], str]] = {"mixed_collection": collections_table, "mixed_weights": weights_table}
