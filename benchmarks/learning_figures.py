"""Figures of the learning curves and of InfoNCE's collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from table_text import title_of

from csaligner.files import write_atomically

COLOURS = {
    "InfoNCE": "#a3408a",
    "InfoNCE + D_CS": "#00796b",
    "InfoNCE + L2": "#c2571a",
    "InfoNCE + MMD": "#1f5fa8",
    "chosen start": "#777777",
    "defaults": "#222222",
}
STYLES = {"chosen start": ":", "defaults": "--"}
AXES = {
    "pairs": "training pairs",
    "pairs, 100 unpaired": "training pairs, and 100 + 100 unpaired rows",
    "noise": "% of the pairs exchanged",
    "batch": "batch size",
}
Record = Mapping[str, Any]


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """Draw score and gap of CLIP and radiology, one column per curve."""
    curves = {c: label for c, label in AXES.items() if any(r["curve"] == c for r in records)}
    figure = Figure(figsize=(1 + 3 * len(curves), 10), layout="constrained")
    rows = [(name, key) for name in ("clip_coco_500", "convirt_500") for key in ("score", "gap")]
    grid = figure.subplots(len(rows), len(curves), sharex="col", squeeze=False)
    for axes_row, (name, key) in zip(grid, rows, strict=True):
        for axes, (curve, label) in zip(axes_row, curves.items(), strict=True):
            here = [r for r in records if (r["curve"], r["data"]) == (curve, name)]
            places = list(dict.fromkeys(r["at"] for r in here))
            for method, colour in COLOURS.items():
                values = [r[key] * (100 if key == "score" else 1) for r in here if r["method"] == method]
                if values:
                    style = STYLES.get(method, "-")
                    axes.plot(places, values, style, marker=".", color=colour, label=method, linewidth=1.4)
            if curve != "noise":
                axes.set_xscale("log")
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            if key == "gap":
                axes.set_ylim(bottom=0)
            if (name, key) == rows[-1]:
                axes.set_xlabel(label, fontsize=9)
        axes_row[0].set_ylabel(f"{title_of(name)}: {key}", fontsize=9)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, 2 + len(curves)), frameon=False)
    _save(figure, path)


def draw_collapse(courses: Sequence[Record], path: Path) -> None:
    """Draw gap, D_CS, R@1 and nDCG of the test pairs during training: mean and range over splits."""
    shown = (("gap", "gap"), ("cs", "D_CS"), ("recall", "R@1, %"), ("ndcg", "nDCG@10, mixed index, %"))
    names = list(dict.fromkeys(c["data"] for c in courses))
    figure = Figure(figsize=(13, 3.1 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), len(shown), squeeze=False)
    for axes_row, name in zip(grid, names, strict=True):
        here = [c["methods"] for c in courses if c["data"] == name]
        for axes, (key, label) in zip(axes_row, shown, strict=True):
            for method in here[0]:
                epochs = [p["epoch"] for p in here[0][method]]
                values = np.array([[p[key] for p in course[method]] for course in here])
                values *= 100 if key in {"recall", "ndcg"} else 1
                axes.plot(epochs, values.mean(axis=0), color=COLOURS[method], label=method)
                low, high = values.min(axis=0), values.max(axis=0)
                axes.fill_between(epochs, low, high, color=COLOURS[method], alpha=0.15, linewidth=0)
            axes.set_ylim(bottom=0)
            axes.set_title(label, fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            axes.set_xlabel("epoch", fontsize=9)
        axes_row[0].set_ylabel(title_of(name), fontsize=9)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "csaligner", "svg.fonttype": "none"}):
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))
