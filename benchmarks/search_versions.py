"""Time of a query of this version and of an earlier one, asked alternately, and whether their answers are equal.

    git worktree add ../before COMMIT
    python benchmarks/search_versions.py --before ../before --commit COMMIT

Each version builds and searches an index of the same rows in processes of its own, on one thread. Writes "versions" of
benchmarks/results/search.json; other load changes the processor times of both alike, so that the ratio counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import search
import torch

from csaligner.search.index import Hit, Index

HERE = Path(__file__).resolve().parents[1]
FIRST = 10  # queries that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="checkout of the earlier version")
    parser.add_argument("--commit", help="its commit")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", default=["exact", "faiss"])
    parser.add_argument("--answer", type=Path, help="answer queries on an index: the part that runs for each version")
    arguments = parser.parse_args()
    if arguments.answer is not None:
        answer(arguments.answer, arguments.queries)
        return
    versions = {"before": arguments.before.resolve(), "now": HERE}
    where = Path(tempfile.mkdtemp())
    try:
        search.filled_index(where / "rows", arguments.rows, "none")
        found = {kind: compared(where, kind, versions, arguments.queries) for kind in arguments.kinds}
        search.record("versions", {"rows": arguments.rows, "before": arguments.commit, "kinds": found})
    finally:
        shutil.rmtree(where, ignore_errors=True)


def compared(where: Path, kind: str, versions: Mapping[str, Path], queries: int) -> dict[str, Any]:
    """Return the times of vectors alone and with the text encoder."""
    processes = {}
    for name, root in versions.items():
        shutil.copytree(where / "rows", where / f"{kind}-{name}")
        folder, own = str(where / f"{kind}-{name}"), dict(os.environ, PYTHONPATH=str(root / "src"))
        build = [sys.executable, str(HERE / "benchmarks" / "search.py"), "build", folder, kind]
        subprocess.run(build, env=own, check=True, stdout=subprocess.DEVNULL)
        command = [sys.executable, __file__, "--answer", folder, "--queries", str(queries)]
        pipe = subprocess.PIPE
        processes[name] = subprocess.Popen(command, env=own, stdin=pipe, stdout=pipe, text=True)
    try:
        return {what: alternating(processes, what, queries) for what in ("vectors_only", "with_text_encoder")}
    finally:
        for process in processes.values():
            process.communicate()  # ends its input


def alternating(processes: Mapping[str, Any], what: str, queries: int) -> dict[str, Any]:
    """Ask each query of both versions, in turns first."""
    times: dict[str, list[float]] = {name: [] for name in processes}
    different, largest = 0, 0.0
    for n in range(queries):
        said = {}
        for name in list(processes)[:: 1 if n % 2 else -1]:
            said[name] = asked(processes[name], f"{what} {n}")
            times[name].append(said[name]["ms"])
        before, now = said["before"]["hits"], said["now"]["hits"]
        different += [i for i, _ in before] != [i for i, _ in now]
        largest = max([largest, *(abs(a - b) for (_, a), (_, b) in zip(before, now, strict=True))])
    ratios = [a / b for a, b in zip(times["before"][FIRST:], times["now"][FIRST:], strict=True)]
    found: dict[str, Any] = {"ratio": round(statistics.median(ratios), 2), "different_answers": different}
    found["largest_difference_of_scores"] = largest
    for name, all_times in times.items():
        quantiles = np.quantile(all_times[FIRST:], [0.5, 0.95])
        found |= {f"{name}_p50_ms": round(float(quantiles[0]), 2), f"{name}_p95_ms": round(float(quantiles[1]), 2)}
    return found


def asked(process: Any, line: str) -> dict[str, Any]:
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def answer(folder: Path, queries: int) -> None:
    """Answer lines of standard input with processor milliseconds and hits."""
    torch.set_num_threads(1)
    index = Index.open(folder)
    index.warm()
    features = [index.features(search.words(n)) for n in range(queries)]
    ask: Mapping[str, Callable[[int], list[Hit]]] = {
        "vectors_only": lambda n: index.search_features(features[n], "text"),
        "with_text_encoder": lambda n: index.search(search.words(queries + n)),
    }
    for line in sys.stdin:
        what, number = line.split()
        began = time.process_time()
        hits = ask[what](int(number))
        ms = 1e3 * (time.process_time() - began)
        print(json.dumps({"ms": ms, "hits": [(hit.id, hit.score) for hit in hits]}), flush=True)


if __name__ == "__main__":
    main()
