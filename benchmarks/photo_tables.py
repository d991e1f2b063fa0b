"""Table of the bundled aligner on images that no one tuned on, from photos.json."""

from __future__ import annotations

from table_text import load, table

SETS = {
    "named": "photographs, by file name",
    "gcompris": "photographs of GCompris: monuments, tools",
    "renders": "rendered pieces of furniture",
}
METHODS = {
    "before": "aligner of version 0.2 (drawings only)",
    "bridge, not centred": "class names, not centred",
    "bridge": "class names, centred on these images and texts",
    "bundled": "**bundled aligner**",
}


def unseen_table() -> str:
    """Return recall and mixed search by set and method, and the bundled aligner's difference to each other method."""
    found, rows = load("photos")["unseen"], []
    for name, title in SETS.items():
        for method, label in METHODS.items():
            measured = found[name][method]
            gains = found["bundled - other"].get(f"{name}, {method}")
            cells = [f"{measured[key]:.1f}" for key in ("recall@10 among 143", "recall@10", "mixed")]
            changes = [_interval(gains[key]) if gains else "" for key in ("recall@10", "mixed")]
            rows.append([f"{found[name]['count']} {title}" if method == "before" else "", label, *cells, *changes])
    head = ["queries", "", "R@10 in its set (at most 143), %", "R@10 among 828, %", "image recall@10, mixed, %"]
    return table([*head, "bundled minus this: R@10 among 828", "mixed"], rows)


def _interval(values: list[float]) -> str:
    return "{:+.1f} ({:.1f} to {:.1f})".format(*values)


TABLES = {"unseen_photos": unseen_table}
