"""Generator of the tables in README.md and docs/ from the JSON of the benchmarks.

python benchmarks/tables.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cluster_cost import TABLES as CLUSTER_TABLES
from default_tables import TABLES as DEFAULT_TABLES
from fault_tables import TABLES as FAULT_TABLES
from generation_tables import TABLES as GENERATION_TABLES
from growth_tables import TABLES as GROWTH_TABLES
from input_tables import TABLES as INPUT_TABLES
from learning_tables import TABLES as LEARNING_TABLES
from measures import Changes, differences, measures_table
from mixed_tables import TABLES as MIXED_TABLES
from paper_tables import TABLES as PAPER_TABLES
from photo_tables import TABLES as PHOTO_TABLES
from readme_tables import TABLES as README_TABLES
from scale_tables import TABLES as SCALE_TABLES
from search_tables import TABLES as SEARCH_TABLES
from space_tables import TABLES as SPACE_TABLES
from suite_tables import TABLES as SUITE_TABLES
from table_text import RESULTS, load, table
from training_tables import TABLES as TRAINING_TABLES

from csaligner.files import write_text

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))

# what the implementations in the JSON are called on the pages, where `dense` is an implementation of csaligner
LABELS = {
    "csaligner_mixed": "csaligner, `mixed`",
    "csaligner_mmd": "csaligner, `tiled`",
    "dense": "plain autograd",
    "dense autograd": "plain autograd",
    "checkpointed": "plain autograd, checkpointed",
    "compiled": "torch.compile of plain autograd",
    "torch.compile of dense": "torch.compile of plain autograd",
    "floor": "products alone (floor)",
}
LOSS_LABELS = {**LABELS, "csaligner": "csaligner, `tiled`"}  # at every size, also where `auto` chooses another
GPU_COMMIT = "2e3232d (version 0.2.0)"  # of a results/gpu.json that does not hold its commit


def loss_table() -> str:
    """Return the table of times and memory of the loss, for each group and size."""
    content = load("loss")
    rows = []
    for group in dict.fromkeys(r["group"] for r in content["records"]):
        for size in dict.fromkeys(r["rows"] for r in content["records"] if r["group"] == group):
            records = [r for r in content["records"] if (r["group"], r["rows"]) == (group, size)]
            ours = next(r for r in records if r["implementation"].startswith("csaligner"))
            for r in records:
                ratio = r["median_cpu_seconds"] / ours["median_cpu_seconds"]
                spread = f"{min(r['cpu_seconds']):.2f} to {max(r['cpu_seconds']):.2f}"
                memory = f"{r['peak_mb']:.0f}" if "peak_mb" in r else ""
                name = r["implementation"]
                rows.append(
                    [
                        group,
                        size,
                        LOSS_LABELS.get(name, name),
                        f"{r['median_cpu_seconds']:.2f}",
                        spread,
                        f"{ratio:.2f}",
                        memory,
                    ]
                )
    head = ["loss", "rows", "implementation", "median s", "spread", "times ours", "peak MB"]
    return _machine(content) + table(head, rows)


def small_batch_table() -> str:
    content = load("small_batches")
    names = list(content["records"][0]["ratio_to_dense_autograd"])
    rows = [
        [
            f"{r['rows']} x {r['dim']}",
            *(f"{r['ratio_to_dense_autograd'][name]:.2f}" for name in names),
            f"{r['median_ms']['csaligner']:.1f}",
        ]
        for r in content["records"]
    ]
    heads = ["products alone" if name == "floor" else LABELS.get(name, name) for name in names]
    return _machine(content) + table(["rows x dimensions", *heads, "csaligner, ms"], rows)


def error_table() -> str:
    content = load("loss")["errors_at_1024_rows"]
    rows = [
        [
            group,
            LOSS_LABELS.get(name, name),
            f"{e['value']:.1e}",
            f"{e['gradient']:.1e}",
            f"{e['gradient_relative']:.1e}",
        ]
        for group, losses in content.items()
        for name, e in losses.items()
    ]
    return table(["loss", "implementation", "value", "gradient", "gradient, relative"], rows)


def gpu_table() -> str:
    """Return the table of times and memory on a GPU, with the products alone as floor."""
    content = load("gpu")
    rows = []
    for size, dim in dict.fromkeys((r["rows"], r["dim"]) for r in content["records"]):
        records = [r for r in content["records"] if (r["rows"], r["dim"]) == (size, dim)]
        floor = next(r for r in records if r["implementation"] == "products alone")["median_ms"]
        for r in records:
            name = f"{LABELS.get(r['implementation'], r['implementation'])}, {r['dtype']}"
            if "median_ms" not in r:
                rows.append([f"{size:,}", dim, name, "out of memory", "", ""])
                continue
            memory = f"{r['peak_mb']:,.0f}" if "peak_mb" in r else ""
            rows.append([f"{size:,}", dim, name, f"{r['median_ms']:.2f}", f"{r['median_ms'] / floor:.1f}", memory])
    m = content["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    head = ["rows", "d", "implementation", "median ms", "times the products", "peak MB"]
    commit = content.get("commit", GPU_COMMIT)
    return f"csaligner at commit {commit}; {m['device']}; {versions}; {m['date'][:10]}.\n\n" + table(head, rows)


def gpu_error_table() -> str:
    rows = [
        [
            e["dim"],
            LABELS.get(e["implementation"], e["implementation"]),
            e["dtype"],
            f"{e['value']:.1e}",
            f"{e['gradient_relative']:.1e}",
        ]
        for e in load("gpu")["errors"]
    ]
    return table(["d", "implementation", "dtype", "value", "gradient, relative"], rows)


def token_table() -> str:
    content = load("token")
    rows = [
        [r["pairs"], r["implementation"], f"{r['median_seconds']:.3f}", f"{r['peak_mb']:.0f}"]
        for r in content["records"]
    ]
    return _machine(content) + table(["pairs", "implementation", "median s", "peak MB"], rows)


def numerics_table() -> str:
    """Return one row per sample, dtype and sigma; cells: error of the value / of the gradient."""
    content = load("numerics")
    records = content["records"]
    ways = list(dict.fromkeys(r["way"] for r in records))
    cells: dict[tuple[str, str, float], dict[str, str]] = {}
    for r in records:
        errors = (_error(r["value"]), _error(r["gradient"]))
        cells.setdefault((r["cloud"], r["dtype"], r["sigma"]), {})[r["way"]] = " / ".join(errors)
    rows = [[*case, *(found.get(way, "") for way in ways)] for case, found in cells.items()]
    return _machine(content) + table(["clouds", "dtype", "sigma", *ways], rows)


def demo_table(name: str) -> str:
    """Return means over the seeds of a demo's results.json or results_few.json; "" without a record."""
    if not (RESULTS / f"{name}.json").exists():
        return ""
    records = load(name)
    assert isinstance(records, list)
    first = records[0]
    about = first["provenance"]
    seeds = 1 + max(r["seed"] for r in records)
    pairs = f"{about['training_pairs']} training pairs, " if "training_pairs" in about else ""
    note = (
        f"{pairs}{first['n_images']:.0f} test images, {first['n_captions']:.0f} captions, "
        f"{'one seed' if seeds == 1 else f'mean of {seeds} seeds'}; {_versions(about)}.\n\n"
    )
    return note + _by_method(records)


def clip_table() -> str:
    content = load("clip_coco")
    note = f"Mean of 5 folds of 100 test pairs; {_versions(content['provenance'])}.\n\n"
    changes = differences(content.get("differences", []), "clip_coco_500")
    return note + _by_method(content["records"], changes)


def modalities_table() -> str:
    """Return means over seeds for each pair of modalities."""
    content = load("three_modalities")
    counts = ", ".join(f"{c['test']} {name}" for name, c in content["rows"].items())
    rows = []
    for pair in content["records"][0]["pairs"]:
        for method in dict.fromkeys(r["method"] for r in content["records"]):
            mine = [r["pairs"][pair] for r in content["records"] if r["method"] == method]
            keys = (("recall@1", 100, 1), ("recall@10", 100, 1), ("gap/centroid", 1, 3), ("gap/cs", 1, 3))
            rows.append([pair, method, *(_spread([f * m[key] for m in mine], digits) for key, f, digits in keys)])
    seeds, language = 1 + content["seed"], content["settings"]["language"]
    note = f"Test rows: {counts} (language: {language}); mean ± standard deviation over {seeds} training seeds; "
    note += f"{_versions(content)}.\n\n"
    return note + table(["pair", "method", "R@1 %", "R@10 %", "gap", "D_CS"], rows)


def exchange_table() -> str:
    content = load("exchange")
    rows = [
        [r["exchange"], r["ranks"], f"{r['cpu_seconds']:.2f}", f"{r['extra_mb']:.0f}", f"{r['loss']:.6f}"]
        for r in content["records"]
    ]
    first = content["records"][0]
    note = f"{first['rows']:,} pairs of {first['dims']} dimensions, float32, gloo. "
    head = ["exchange", "ranks", "processor seconds of the slowest rank", "MB above the rows", "loss"]
    return note + _machine(content) + table(head, rows)


def exchange_memory_table() -> str:
    """Return the memory of a rank by the number of rows, beside what its own rows take."""
    content = load("exchange_memory")
    found = {(r["rows"], r["exchange"]): r for r in content["records"]}
    first = content["records"][0]
    size, dims = first["ranks"], first["dims"]
    rows = []
    for count in sorted({r["rows"] for r in content["records"]}):
        own = 2 * count * dims * 4 / size / 2**20
        cells = [f"{found[count, name]['extra_mb']:.0f}" for name in ("gather", "ring")]
        rows.append([f"{count:,}", f"{own:.0f}", f"{size * own:.0f}", *cells])
    note = f"{size} ranks, {dims} dimensions, float32, gloo. "
    head = ["rows", "MB of the rank's rows", "MB of all rows", "gather: MB above its rows", "ring: MB above its rows"]
    return note + _machine(content) + table(head, rows)


def install_table() -> str:
    """Return one row for the package without extras and one for each extra."""
    content = load("install")
    base = content["base"]
    shown = {"none": base} | content["extras"]
    rows = [[f"`{name}`", f"{e['install']['seconds']:.0f}", e["packages"]] for name, e in shown.items()]
    note = (
        f"Wheel: {content['wheel_mb']:.1f} MB. Import in a new process, median: csaligner "
        f"{base['import_csaligner']['seconds']:.2f} s, torch {base['import_torch']['seconds']:.2f} s. "
    )
    return note + _machine(content) + table(["extra", "seconds of pip", "packages"], rows)


def _spread(values: list[float], digits: int) -> str:
    """Format mean ± standard deviation, if there is one."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and stdev(values) > 0 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _by_method(records: list[dict[str, Any]], changes: Changes | None = None) -> str:
    """Return one row per method, means over seeds; a trained method's centred twin is in the last columns."""
    means: dict[str, dict[str, float]] = {}
    for method in dict.fromkeys(r["method"] for r in records):
        mine = [r for r in records if r["method"] == method]
        means[method] = {k: mean(r[k] for r in mine) for k, v in mine[0].items() if isinstance(v, float)}
    return measures_table(means, changes or {})


def _versions(about: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in about["versions"].items())


TABLES: dict[str, Callable[[], str]] = {
    "demo_openmoji": partial(demo_table, "demo_openmoji"),
    "demo_openmoji_few": partial(demo_table, "demo_openmoji_few"),
    "demo_all": partial(demo_table, "demo_all"),
    "clip_coco": clip_table,
    "loss": loss_table,
    "small_batches": small_batch_table,
    "errors": error_table,
    "gpu": gpu_table,
    "gpu_errors": gpu_error_table,
    "token": token_table,
    "numerics": numerics_table,
    "three_modalities": modalities_table,
    "exchange": exchange_table,
    "exchange_memory": exchange_memory_table,
    "install": install_table,
    **CLUSTER_TABLES,
    **GENERATION_TABLES,
    **DEFAULT_TABLES,
    **FAULT_TABLES,
    **GROWTH_TABLES,
    **INPUT_TABLES,
    **LEARNING_TABLES,
    **PAPER_TABLES,
    **PHOTO_TABLES,
    **README_TABLES,
    **SCALE_TABLES,
    **SEARCH_TABLES,
    **MIXED_TABLES,
    **SPACE_TABLES,
    **SUITE_TABLES,
    **TRAINING_TABLES,
}


def _error(value: float | None) -> str:
    return "**not finite**" if value is None else f"{value:.0e}"


def _machine(content: dict[str, Any]) -> str:
    m = content["machine"]
    others = dict(m["versions"])
    ours = others.pop("csaligner")
    versions = ", ".join(f"{name} {version}" for name, version in others.items())
    machine = f"{m['cpu']}, {m['threads']} thread(s), load {m['load']} at the end"
    return f"csaligner {ours}; {machine}; {versions}; {m['date'][:10]}.\n\n"


def filled(page: str) -> str:
    for name, written in TABLES.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if begin not in page:
            continue
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{written()}\n{end}{after}"
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only check whether the pages are up to date")
    check = parser.parse_args().check
    stale = 0
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        new = filled(page)
        stale |= new != page
        if not check:
            write_text(path, new)
    return int(stale and check)


if __name__ == "__main__":
    sys.exit(main())
