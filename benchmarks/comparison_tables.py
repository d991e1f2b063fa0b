"""Tables of method comparisons, sweeps, unpaired rows and scaling, from their JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean, stdev
from typing import Any

from table_text import load, table

from csaligner.comparison.compare import Measured, averages
from csaligner.comparison.run import summary_of
from csaligner.comparison.sweep import Point, best
from csaligner.reporting.comparison import pareto_front

Table = tuple[list[str], list[list[str]]]
# metric, heading, factor, digits
COLUMNS = (
    ("mean_recall@1", "R@1 %", 100, 1),
    ("mixed_image_recall@10", "mixed image-recall@10 %", 100, 1),
    ("gap/centroid", "gap", 1, 3),
    ("gap/cs", "D_CS", 1, 3),
    ("gap/frechet", "Frechet", 1, 3),
    ("gap/probe_accuracy", "probe %", 100, 1),
    ("clustering/ami_category", "AMI", 1, 3),
)


def spread(values: list[float], factor: float, digits: int) -> str:
    shown = [factor * value for value in values]
    tail = f" ± {stdev(shown):.{digits}f}" if len(shown) > 1 and stdev(shown) > 10**-digits / 2 else ""
    return f"{mean(shown):.{digits}f}{tail}"


def compare_rows(content: Mapping[str, Any]) -> Table:
    """Return the table of one dataset's comparison; methods on the Pareto front are marked."""
    measured = [Measured(**m) for m in content["measured"]]
    front = pareto_front(summary_of(measured))
    columns = [c for c in COLUMNS if any(c[0] in m.metrics for m in measured)]
    cells = {key: averages(measured, key) for key, *_ in columns}
    rows = []
    for method in dict.fromkeys(m.method for m in measured):
        dataset = measured[0].dataset
        chosen = [m.settings for m in measured if m.method == method and m.seed == 0]
        settings = "; ".join(f"{key} {_range([s[key] for s in chosen])}" for key in chosen[0])
        values = [
            spread(cells[key][dataset, method], factor, digits) if (dataset, method) in cells[key] else ""
            for key, _, factor, digits in columns
        ]
        rows.append([f"**{method}**" if method in front else method, *values, settings])
    return ["method", *(heading for _, heading, *_ in columns), "chosen on validation"], rows


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
    blocks.append(table(["", "setting", "R@1 / mixed / gap"], rows))
    return _note(content) + "Cells: R@1 % / mixed image-recall@10 % / gap.\n\n" + "\n\n".join(blocks)


def _short(name: str) -> str:
    return {"cauchy_schwarz": "lambda", "bandwidth": "sigma"}.get(name.rpartition(".")[2], name.rpartition(".")[2])


def _cell(point: Point) -> str:
    return " / ".join(f"{factor * point.mean(key):.{digits}f}" for key, _, factor, digits in COLUMNS[:3])


def unpaired_rows(content: Mapping[str, Any]) -> Table:
    keys = COLUMNS[:6]
    records = content["records"]
    rows = []
    for part in dict.fromkeys(r["part"] for r in records):
        for way in dict.fromkeys(r["way"] for r in records):
            mine = [r for r in records if (r["part"], r["way"]) == (part, way)]
            values = [spread([r[key] for r in mine], factor, digits) for key, _, factor, digits in keys]
            rows.append([part, way, str(mine[0]["pairs"]), *values])
    return ["part", "trained on", "pairs", *(heading for _, heading, *_ in keys)], rows


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

    def cell(value: Mapping[str, float], factor: float, digits: int) -> str:
        found, low, high = (f"{value[key] * factor:.{digits}f}" for key in ("value", "low", "high"))
        return f"{found} ({low} to {high})"

    rows = []
    for name, found in content["emoji"].items():
        interval = content["intervals"][name]
        saved = cell(interval["saved"], 100, 0) if name.endswith("raw") else ""
        cells = [f"{found[key]:.3f}" for key in ("kid", "picture_cosine", "pixel_r2")]
        rows.append([name, cell(interval["fid"], 1, 1), cell(interval["minus_ours"], 1, 1), *cells, saved])
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
        if "trials" in budget:
            parts.append(f"{budget['trials']} trials for each tuned method")
    if "cpu" in about:
        parts.append(f"{about['cpu']}, {about['threads']} thread(s), load {about['load']} at the end")
    parts.append(", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    return "; ".join(parts) + ".\n\n"


TABLES: dict[str, Callable[[], str]] = {
    "compare_clip": partial(_text, "compare_clip", compare_rows),
    "compare_clip_twelve": partial(_text, "compare_clip_twelve", compare_rows),
    "compare_openmoji": partial(_text, "compare_openmoji", compare_rows),
    "compare_all": partial(_text, "compare_all", compare_rows),
    "compare_tuxpaint": partial(_text, "compare_tuxpaint", compare_rows),
    "compare_openclipart": partial(_text, "compare_openclipart", compare_rows),
    "sweep_clip": partial(sweep_text, "sweep_clip"),
    "sweep_openmoji": partial(sweep_text, "sweep_openmoji"),
    "sweep_all": partial(sweep_text, "sweep_all"),
    "generation": partial(_text, "generation", generation_rows),
    "generation_images": partial(_text, "generation", generation_image_rows),
    "unpaired": partial(_text, "unpaired", unpaired_rows),
    "scaling": partial(_text, "scaling", scaling_rows),
}
