"""Tables of docs/scale.md: what was measured, and the same steps at 100 million and 1 billion items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from table_text import load, table

DAY, HOUR = 86_400, 3_600
ITEMS = (100_000_000, 1_000_000_000)
DIM, BYTES = 384, 4  # of the vectors in memory, float32


def measured_text() -> str:
    """Return one row per measured figure, with the version and the day of its run where the file has them."""
    embed, store, loss = load("embed"), load("big_store"), load("scaling")
    evaluation, found = load("evaluation"), store["figures"]
    pairs = f"{store['setting']['rows']:,} pairs, {store['setting']['dim']} dimensions"
    batch = store["setting"]["batch"]
    rate, peak = found["steps_per_second"], found["peak_mb_until_first_step"]
    largest = loss["records"][-1]["rows"]
    rows = [
        _row(
            "embed",
            f"{embed['pictures']} images, {embed['captions']} captions, bundled encoders, 2 cores",
            f"{embed['median']['embed']:.1f} images/s (median of {len(embed['pictures_per_second']['embed'])})",
            "embed",
            embed,
        ),
        _row("store", f"{pairs}, fp16", f"{store['setting']['store_mb']:,.0f} MiB", "big_store", store),
        _row(
            "train, first step",
            f"{pairs}, 1 thread",
            f"after {found['seconds_until_first_step']:.0f} s, peak memory {peak:,.0f} MiB",
            "big_store",
            store,
        ),
        _row(
            "train",
            f"the same store, batch {batch}, 1 thread",
            f"{rate:.3f} steps/s = {rate * batch:.0f} pairs/s",
            "big_store",
            store,
        ),
        _row(
            "loss alone",
            f"batch {loss['records'][0]['rows']:,} to {largest:,}, {loss['records'][0]['dim']} dimensions, 1 thread",
            f"time grows with the power {loss['time_exponent']:.2f} of the batch, memory with "
            f"{loss['memory_exponent']:.2f}",
            "scaling",
            loss,
        ),
        *(row for key in _search_keys() for row in _search_rows(key)),
    ]
    for name, label in (
        ("evaluate_sampled", "evaluation, sampled"),
        ("gap_metrics_of_all", "gap metrics of all pairs"),
        ("fit_one_epoch", "`fit`, one epoch, with selection and gate"),
    ):
        figures = evaluation[name]
        size = f"{figures['pairs']:,} pairs, {figures['dimensions']} dimensions"
        more = figures["peak_gib"] - figures["data_gib"]
        text = f"{figures['seconds']:.1f} s, peak memory {figures['peak_gib']:.2f} GiB, {more:.2f} above the data"
        rows.append(_row(label, size, text, "evaluation", figures))
    return table(["step", "size", "figure", "source", "version, day"], rows)


def extrapolated_text() -> str:
    """Return the measured figures times the number of items; all but the store and the memory in time."""
    embed, store = load("embed")["median"]["embed"], load("big_store")
    gap = load("evaluation")["gap_metrics_of_all"]
    rate = store["figures"]["steps_per_second"] * store["setting"]["batch"]
    lines: list[tuple[str, Callable[[int], str]]] = [
        ("embed, 2 cores", lambda n: _time(n / embed, cores=2)),
        ("store, 768 dimensions, fp16", lambda n: _bytes(n * store["setting"]["store_mb"] / store["setting"]["rows"])),
        ("train, one pass over all pairs, 1 core", lambda n: _time(n / rate, cores=1)),
        *(_index_line(kind) for kind in ("faiss", "ivf_sq")),
        (
            "vectors in memory while an index is finished, float32, 384 dimensions",
            lambda n: _bytes(n * DIM * BYTES / 2**20),
        ),
        ("gap metrics of all pairs", lambda n: _time(n * gap["seconds"] / gap["pairs"])),
    ]
    return table(["step", "100 million items", "1 billion items"], [[name, *map(text, ITEMS)] for name, text in lines])


def _index_line(kind: str) -> tuple[str, Callable[[int], str]]:
    index = load("search")[f"scale/1000000/{kind}"]
    seconds, unit = _built(index)
    name = f"index, `{kind}`, 384 dimensions: one row per item, from features; {unit}"
    return (
        name,
        lambda n: f"{_time(n * seconds / index['rows'])}, {_bytes(n * index['disk_mb'] / index['rows'])} on disk",
    )


def _built(index: Mapping[str, Any]) -> tuple[float, str]:
    """Return the seconds of building an index, in processor time where it was measured, and the unit."""
    if "insert_cpu_s" in index:
        return index["insert_cpu_s"] + index["finish_cpu_s"], "processor time"
    return index["insert_s"] + index["finish_s"], "wall time"


def _search_keys() -> list[str]:
    wanted = ("scale/1000000/ivf_sq", "scale/1000000/faiss", "scale/100000/exact")
    return [key for key in wanted if key in load("search")]


def _search_rows(key: str) -> list[list[str]]:
    content = load("search")[key]
    kind = key.rpartition("/")[2]
    size = f"{content['rows']:,} rows, {content['dim']} dimensions, {'exact' if kind == 'exact' else f'`{kind}`'}"
    (build, unit), found = _built(content), content["vectors_only"]
    p50, p95 = (found[f"cpu_{name}_ms" if unit == "processor time" else f"{name}_ms"] for name in ("p50", "p95"))
    disk, peak = content["disk_mb"], content["peak_while_building_mb"]
    built = f"{build:.0f} s of {unit}, {disk:,.0f} MiB on disk, peak memory {peak:,.0f} MiB"
    asked = f"p50 {p50:.1f} ms, p95 {p95:.1f} ms of {unit}, recall@10 {content['recall@10']:.3f}"
    return [
        _row("index", f"{size}, from features", built, "search", content),
        _row("search", "the same index, vectors only", asked, "search", content),
    ]


def _row(step: str, size: str, figure: str, name: str, content: Mapping[str, Any]) -> list[str]:
    machine = content.get("machine", {})
    when = f"{machine['versions']['csaligner']}, {machine['date'][:10]}" if "date" in machine else "not recorded"
    return [step, size, figure, f"`{name}.json`", when]


def _time(seconds: float, cores: int = 0) -> str:
    amount = f"{seconds / DAY:.3g} days" if seconds >= 2 * DAY else f"{seconds / HOUR:.2g} hours"
    return f"{amount} = {_rounded(seconds * cores / HOUR):,} core hours" if cores else amount


def _rounded(value: float) -> int:
    return int(float(f"{value:.3g}"))


def _bytes(mib: float) -> str:
    return f"{mib * 2**20 / 1e12:.2g} TB"


TABLES: Mapping[str, Callable[[], str]] = {"scale_measured": measured_text, "scale_extrapolated": extrapolated_text}
