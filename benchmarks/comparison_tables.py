"""Tables of method comparisons, sweeps, unpaired rows and scaling, from their JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean
from typing import Any

from measures import differences, measures_table
from table_text import load, table

from csaligner.comparison.compare import Measured
from csaligner.comparison.run import summary_of
from csaligner.comparison.sweep import Point, best
from csaligner.evaluation.score import MEAN_NDCG, MEAN_RECALL, SCORE
from csaligner.reporting.comparison import pareto_front

HOW = ("before", "after")  # grouping of near-duplicates
SWEEP = ((SCORE, 100, 1), (MEAN_RECALL, 100, 1), (MEAN_NDCG, 100, 1), ("gap/centroid", 1, 3))

Table = tuple[list[str], list[list[str]]]


def compare_text(name: str) -> str:
    """Return the table of one dataset's comparison; methods on the Pareto front are marked."""
    content = load(name)
    measured = [Measured(**m) for m in content["measured"]]
    dataset = measured[0].dataset
    summary = summary_of(measured)
    front = pareto_front(summary)
    rows = {m: {key: cell.mean for key, cell in summary.cells[m].items()} for m in summary.methods}
    chosen: dict[str, str] = {}
    for method in summary.methods:
        settings = [m.settings for m in measured if m.method == method and m.seed == 0]
        chosen[method] = "; ".join(f"{key} {_range([s[key] for s in settings])}" for key in settings[0])
    changes = differences(content.get("differences", []), dataset)
    return _note(content) + measures_table(rows, changes, front, chosen)


def sweep_text(name: str) -> str:
    """Return a table for each grid of two settings, and the automatic setting compared with the best grid point."""
    content = load(name)
    points = [Point(**p) for p in content["points"]]
    blocks = []
    for grid in dict.fromkeys(p.grid for p in points if p.grid != "auto"):
        mine = [p for p in points if p.grid == grid]
        row, column = mine[0].settings
        columns = list(dict.fromkeys(p.settings[column] for p in mine))
        rows = [
            [value, *(_cell(p) for p in mine if p.settings[row] == value)]
            for value in dict.fromkeys(p.settings[row] for p in mine)
        ]
        head = f"{_short(row)} \\ {_short(column)}"
        blocks.append(table([head, *columns], rows))
    chosen = [("best grid point", best([p for p in points if p.grid != "auto"]))]
    chosen += [("automatic", p) for p in points if p.grid == "auto"]
    rows = [[how, ", ".join(f"{_short(k)} {v}" for k, v in p.settings.items()), _cell(p)] for how, p in chosen]
    blocks.append(table(["", "setting", "score / R@1 / nDCG / gap"], rows))
    about = "Cells: score / R@1 % / nDCG@10 % of the mixed index / gap; means of caption and image queries."
    return f"{_note(content)}{about}\n\n" + "\n\n".join(blocks)


def _short(name: str) -> str:
    return {"cauchy_schwarz": "lambda", "bandwidth": "sigma"}.get(name.rpartition(".")[2], name.rpartition(".")[2])


def _cell(point: Point) -> str:
    means = point.means()
    return " / ".join(f"{factor * means[key]:.{digits}f}" for key, factor, digits in SWEEP)


def unpaired_text() -> str:
    content = load("unpaired")
    records = content["records"]
    blocks = []
    for part in dict.fromkeys(r["part"] for r in records):
        mine = [r for r in records if r["part"] == part]
        rows = {
            way: {k: mean(r[k] for r in mine if r["way"] == way) for k, v in mine[0].items() if isinstance(v, float)}
            for way in dict.fromkeys(r["way"] for r in mine)
        }
        blocks.append(f"{part}, {mine[0]['pairs']} pairs:\n\n" + measures_table(rows, {}))
    return _note(content) + "\n\n".join(blocks)


def near_duplicate_rows(content: Mapping[str, Any]) -> Table:
    records = content["records"]
    rows = []
    for source in dict.fromkeys(r["source"] for r in records):
        before, after = (next(r for r in records if (r["source"], r["grouping"]) == (source, how)) for how in HOW)
        rows.append([source, *(f"{r['with_twin_in_train']} of {r['test_images']}" for r in (before, after))])
    return ["source", "grouped as in version 0.1", "near-duplicates grouped"], rows


def scaling_rows(content: Mapping[str, Any]) -> Table:
    rows = [
        [f"{r['rows']:,}", str(r["dim"]), f"{r['cpu_seconds']:.2f}", f"{r['extra_mb']:.0f}", f"{r['inputs_mb']:.0f}"]
        for r in content["records"]
    ]
    return ["rows", "d", "processor s", "MB above the inputs", "MB of inputs"], rows


def generation_rows(content: Mapping[str, Any]) -> Table:
    """Predicted embeddings of all test captions: distance to real ones and recall."""
    keys = (
        ("embedding_frechet", "embedding Frechet", 1, 4),
        ("text_to_image_recall@1", "text-to-image R@1 %", 100, 1),
        ("text_to_image_recall@10", "R@10 %", 100, 1),
        ("paired_cosine", "cosine to the true embedding", 1, 3),
    )
    rows = [
        [name, *(f"{method['test'][key] * factor:.{digits}f}" for key, _, factor, digits in keys), _chosen(method)]
        for name, method in content["methods"].items()
    ]
    return ["objective", *(heading for _, heading, *_ in keys), "chosen on validation"], rows


def generation_states_rows(content: Mapping[str, Any]) -> Table:
    """Predicted embeddings of the test captions, with the intervals of the bootstrap over images."""
    keys = (
        ("frechet", "embedding Frechet", 1, 3),
        ("frechet_minus_ours", "minus CS-Aligner", 1, 3),
        ("recall@1", "text-to-image R@1 %", 100, 1),
        ("recall@1_minus_ours", "minus CS-Aligner", 100, 1),
    )
    rows = [
        [
            name,
            *(_with_interval(content["intervals_of_embeddings"][name][key], factor, n) for key, _, factor, n in keys),
            f"{method['test']['paired_cosine']:.3f}",
            _chosen(method),
        ]
        for name, method in content["methods"].items()
    ]
    return ["objective", *(k[1] for k in keys), "cosine to the true embedding", "chosen on validation"], rows


def _with_interval(value: Mapping[str, float], factor: float, digits: int) -> str:
    found, low, high = (f"{value[key] * factor:.{digits}f}" for key in ("value", "low", "high"))
    return f"{found} ({low} to {high})"


def _chosen(method: Mapping[str, Any]) -> str:
    """Return the settings that differ between the trials of a method, as selected."""
    objective = method["objective"]
    tried = [trial["objective"] for trial in method["trials"]]
    words = [
        f"{name} {weight:g}"
        for name, weight in objective["terms"].items()
        if len({o["terms"][name] for o in tried}) > 1
    ]
    if any("bandwidth" in o for o in tried):
        words.append(f"sigma {objective.get('bandwidth', 0.5)}")
    if any("logit_scale" in o for o in tried):
        words.append(
            f"logit scale {objective['logit_scale']:g}" if "logit_scale" in objective else "logit scale learnt"
        )
    return ", ".join(words)


def generation_image_rows(content: Mapping[str, Any]) -> Table:
    """Images generated for the test emoji, with the interval of the bootstrap over emoji."""

    rows = []
    for name, found in content["emoji"].items():
        interval = content["intervals"][name]
        saved = _with_interval(interval["saved"], 100, 0) if name.endswith("raw") else ""
        cells = [f"{found[key]:.3f}" for key in ("kid", "picture_cosine", "pixel_r2")]
        rows.append(
            [name, _with_interval(interval["fid"], 1, 1), _with_interval(interval["minus_ours"], 1, 1), *cells, saved]
        )
    headings = ("images from", "FID, 64 dims", "minus CS-Aligner raw", "KID", "cosine to the original", "pixel R2")
    return [*headings, "gain of snapping already there %"], rows


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _text(name: str, rows_of: Callable[[Mapping[str, Any]], Table]) -> str:
    content = load(name)
    head, rows = rows_of(content)
    return _note(content) + table(head, rows)


def _note(content: Mapping[str, Any]) -> str:
    about = content.get("provenance") or content["machine"]
    parts = []
    if "budget" in content:
        budget = content["budget"]
        parts.append(f"{budget['seeds']} seed(s)")
        if budget.get("settings_known"):
            parts.append("settings tuned with version 0.1, by recall + mixed recall - gap")
        elif "trials" in budget:
            parts.append(f"{budget['trials']} trials for each tuned method")
        if content.get("score", SCORE) != SCORE:
            parts.append("measured with version 0.1 (its start and splits; selection by recall + mixed recall - gap)")
    if "cpu" in about:
        parts.append(f"{about['cpu']}, {about['threads']} thread(s), load {about['load']} at the end")
    parts.append(", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    return "; ".join(parts) + ".\n\n"


TABLES: dict[str, Callable[[], str]] = {
    "compare_clip": partial(compare_text, "compare_clip"),
    "compare_openmoji": partial(compare_text, "compare_openmoji"),
    "compare_all": partial(compare_text, "compare_all"),
    "compare_tuxpaint": partial(compare_text, "compare_tuxpaint"),
    "compare_openclipart": partial(compare_text, "compare_openclipart"),
    "sweep_clip": partial(sweep_text, "sweep_clip"),
    "sweep_openmoji": partial(sweep_text, "sweep_openmoji"),
    "sweep_all": partial(sweep_text, "sweep_all"),
    "generation": partial(_text, "generation", generation_rows),
    "generation_images": partial(_text, "generation", generation_image_rows),
    "generation_states": partial(_text, "generation_states", generation_states_rows),
    "generation_states_images": partial(_text, "generation_states", generation_image_rows),
    "unpaired": unpaired_text,
    "near_duplicates": partial(_text, "near_duplicates", near_duplicate_rows),
    "scaling": partial(_text, "scaling", scaling_rows),
}
