"""Tables of near-duplicates, generation and scaling, from their JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from table_text import load, table

HOW = ("before", "after")  # grouping of near-duplicates

Table = tuple[list[str], list[list[str]]]


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
    if "cpu" in about:
        parts.append(f"{about['cpu']}, {about['threads']} thread(s), load {about['load']} at the end")
    versions = {name: f"{name} {version}" for name, version in about["versions"].items()}
    parts.insert(0, versions.pop("csaligner"))
    parts.append(", ".join(versions.values()))
    return "; ".join(parts) + ".\n\n"


TABLES: dict[str, Callable[[], str]] = {
    "generation": partial(_text, "generation", generation_rows),
    "generation_images": partial(_text, "generation", generation_image_rows),
    "generation_states": partial(_text, "generation_states", generation_states_rows),
    "generation_states_images": partial(_text, "generation_states", generation_image_rows),
    "near_duplicates": partial(_text, "near_duplicates", near_duplicate_rows),
    "scaling": partial(_text, "scaling", scaling_rows),
}
