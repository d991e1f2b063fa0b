"""Tables of docs/search.md, from benchmarks/results/search.json; written by benchmarks/tables.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from table_text import load, table

QUALITY = (
    ("mixed_ndcg@10", "nDCG@10 %, text query"),
    ("mixed_ndcg@10/image_query", "nDCG@10 %, image query"),
    ("modality_bias@10", "bias@10, text query"),
    ("modality_bias@10/image_query", "bias@10, image query"),
)


def quality_table(name: str) -> str:
    content = load("search")[name]
    rows = []
    for method, values in content.items():
        if isinstance(values, dict) and QUALITY[0][0] in values:
            cells = [f"{100 * values[key]:.1f}" for key, _ in QUALITY[:2]]
            mean_ndcg = f"{50 * sum(values[key] for key, _ in QUALITY[:2]):.1f}"
            rows.append([method, mean_ndcg, *cells, *(f"{round(values[key], 3) + 0.0:+.3f}" for key, _ in QUALITY[2:])])
    folds = f", mean of {content['folds']} folds" if "folds" in content else ""
    about = f"{content['n_images']} images and {content['n_captions']} captions{folds}, {content['seeds']} seeds.\n\n"
    return about + table(["method", "nDCG@10 %, mean", *(heading for _, heading in QUALITY)], rows)


def scale_table() -> str:
    """Return a table for each commit that was measured."""
    records = {name: r for name, r in load("search").items() if name.startswith("scale/")}
    commits = list(dict.fromkeys(r.get("commit") for r in records.values()))
    parts = [_scale({n: r for n, r in records.items() if r.get("commit") == commit}) for commit in commits]
    return "\n\n".join(parts) + _versions() + _clients() + _started()


def _scale(records: dict[str, Any]) -> str:
    rows, about = [], ""
    for name, r in records.items():
        m, now = r["machine"], "commit" in r
        built = r["insert_cpu_s"] + r["finish_cpu_s"] if now else r["insert_s"] + r["finish_s"]
        time = f"commit {r['commit'][:7]}; build and queries in processor time of all threads, with " if now else ""
        about = f"{m['cpu']}, 1 thread, dimension {r['dim']}; csaligner {m['versions']['csaligner']}; {time}"
        loads = sorted({f"{found['machine']['load']:.1f}" for found in records.values()}, key=float)
        wall = "wall time in brackets" if now else "wall time"
        about += f"{wall} at a load of {loads[0]} to {loads[-1]}.\n\n"
        rows.append(
            [
                f"{r['rows']:,}",
                name.rpartition("/")[2],
                f"{built:.0f}",
                f"{r['recall@10']:.3f}",
                _latency(r["vectors_only"], now),
                _latency(r["with_text_encoder"], now),
                f"{r['resident_mb']:.0f} ({r['encoders_mb']:.0f})",
                f"{r['disk_mb']:.0f}",
            ]
        )
    head = [
        "rows",
        "kind",
        "build s",
        "recall@10",
        "query p50 / p95 ms",
        "with encoder",
        "memory MB (before vectors)",
        "disk MB",
    ]
    return about + table(head, rows)


def _versions() -> str:
    r = load("search").get("versions")
    if r is None:
        return ""
    rows = []
    for kind, parts in r["kinds"].items():
        for what, x in parts.items():
            times = (f"{x[f'{name}_p50_ms']:.1f} / {x[f'{name}_p95_ms']:.1f}" for name in ("before", "now"))
            rows.append([kind, what.replace("_", " "), *times, f"{x['ratio']:.2f}", str(x["different_answers"])])
    about = (
        f"\n\n{r['rows']:,} rows, each query asked of commits {r['before'][:7]} and {r['commit'][:7]} in turns, in "
        f"processor time at a load of {r['machine']['load']:.0f}, which lengthens both alike:\n\n"
    )
    return about + table(
        ["kind", "query", "before, p50 / p95 ms", "now", "before / now, median", "different answers"], rows
    )


def _clients() -> str:
    r = load("search").get("clients")
    if r is None:
        return ""
    version = f"csaligner {r['machine']['versions']['csaligner']}, commit {r['commit'][:7]}"
    return (
        f"\n\n{r['clients']} concurrent clients over {r['rows']:,} items for {r['seconds']:.0f} s on loopback, "
        f"{version}: "
        f"{r['answers']:,} answers, {r['errors']} errors, {r['cpu_ms_an_answer']:.0f} ms of processor time per answer, "
        f"the client's share included (load {r['machine']['load']:.0f})."
    )


def _started() -> str:
    r = load("search").get("start")
    if r is None:
        return ""
    return (
        f"\n\n`csaligner serve` over {r['rows']:,} items, csaligner {r['machine']['versions']['csaligner']}, commit "
        f"{r['commit'][:7]}: the page answers after {r['page_cpu_s']:.1f} s of processor time, and a search that is "
        f"asked at once after a further {r['first_search_cpu_s']:.1f} s (median of {r['times']})."
    )


def _latency(r: dict[str, float], processor: bool) -> str:
    """Format processor time and wall time, or wall time alone."""
    wall = f"{r['p50_ms']:.0f} / {r['p95_ms']:.0f}"
    return f"{r['cpu_p50_ms']:.1f} / {r['cpu_p95_ms']:.1f} ({wall})" if processor else wall


def ten_queries_table() -> str:
    r = load("ten_queries")
    names = [name for name in r["right_of_50"] if name != "tiny CLIP"]
    rows = [[query, *(str(sum(r["right"][name][query])) for name in names)] for query in r["right"][names[0]]]
    rows.append(["all, of 50", *(str(r["right_of_50"][name]) for name in names)])
    return f"{r['images']} images; right results among the first five.\n\n" + table(["query", *names], rows)


TABLES: dict[str, Callable[[], str]] = {
    "search_quality": partial(quality_table, "quality"),
    "search_clip": partial(quality_table, "clip"),
    "search_scale": scale_table,
    "ten_queries": ten_queries_table,
}
