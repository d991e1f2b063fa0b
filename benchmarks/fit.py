"""Processor time (user and system) of CSAligner().fit on one core, in turns with the same fit at an earlier commit.

    python benchmarks/fit.py --before COMMIT --out benchmarks/results/fit.json [--work fit:400x512 ...] [--rounds 3]

The earlier commit is checked out by `git worktree` into a temporary folder. Every fit runs in a process of its own with
one thread, so imports at the first fit count; the two commits take turns. Pairs are linear in 64 common directions,
with noise. Work: `fit` is CSAligner() as it is, where the gate rejects training after one fold; `folds` is the same on
pairs that are not linear, where it takes all three; `auto` has a fixed start and no gate, which is 40 epochs of
training; `untrained` chooses the start alone. Ratios are those of each round, before / now.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SETTINGS: Mapping[str, dict[str, Any]] = {
    "fit": {},
    "folds": {},
    "auto": {"start": {"kind": "auto"}, "gate": False},
    "untrained": {"epochs": 0},
}
WORK = ("fit:400x512", "folds:400x512", "auto:400x512", "fit:5000x512", "untrained:100x3072")
COMMON, HELD = 64, 200


def one_fit(work: str) -> dict[str, Any]:
    """Fit once in this process; returns seconds, peak memory and what was found."""
    import numpy as np
    import torch
    from machine import peak_rss_mb

    from csaligner import CSAligner
    from csaligner.config import TrainConfig

    torch.set_num_threads(1)
    kind, _, size = work.partition(":")
    pairs, dim = map(int, size.split("x"))
    generator = np.random.default_rng(2 if kind == "folds" else 0)
    common = generator.standard_normal((pairs + HELD, COMMON))
    maps = [generator.standard_normal((COMMON, dim)) for _ in range(2)]
    exact = [common @ each for each in maps]
    if kind == "folds":
        exact = [rows.clip(0) for rows in exact]
    noise = 8.0 if kind == "folds" else 3.0
    image, text = ((rows + noise * generator.standard_normal(rows.shape)).astype(np.float32) for rows in exact)
    before, rss = resource.getrusage(resource.RUSAGE_SELF), peak_rss_mb()
    known = {name: value for name, value in SETTINGS[kind].items() if name in TrainConfig.model_fields}
    aligner = CSAligner(**known).fit(image[:pairs], text[:pairs])
    after = resource.getrusage(resource.RUSAGE_SELF)
    selection = getattr(aligner, "selection_", None)  # earlier versions have neither choice nor gate
    return {
        "seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": peak_rss_mb(),
        "peak_mb_before_fit": rss,
        "start": selection.start.label if selection and selection.start else None,
        "scale": selection.gate.scale if selection and selection.gate else None,
        "gate_images": selection.gate.images if selection and selection.gate else None,
        "mean_recall@1": round(aligner.evaluate(image[pairs:], text[pairs:])["mean_recall@1"], 4),
    }


def in_process(tree: Path, work: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", work]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{work} of {tree} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(work: str, trees: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    for number in range(rounds):
        for name in list(trees) if number % 2 == 0 else list(trees)[::-1]:
            runs[name].append(in_process(trees[name], work))
            print(work, name, runs[name][-1], flush=True)
    seconds = {name: [run["seconds"] for run in each] for name, each in runs.items()}
    ratios = [a / b for a, b in zip(seconds["before"], seconds["now"], strict=True)]
    record: dict[str, Any] = {"work": work, "rounds": rounds, "ratio": round(statistics.median(ratios), 3)}
    for name, each in runs.items():
        values = seconds[name]
        record[name] = {k: v for k, v in each[0].items() if k != "seconds"} | {
            "median_seconds": round(statistics.median(values), 3),
            "seconds": [round(value, 3) for value in values],
        }
    record["ratios"] = [round(ratio, 3) for ratio in ratios]
    return record


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="the earlier commit")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/fit.json")
    parser.add_argument("--work", nargs="+", default=WORK, help="KIND:PAIRSxDIM, KIND one of fit, auto, untrained")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(one_fit(arguments.child)))
        return
    if arguments.before is None:
        parser.error("--before is required")
    import torch
    from machine import describe, write

    from csaligner.run_folder import provenance

    torch.set_num_threads(1)
    earlier = git("rev-parse", arguments.before)
    content = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"records": []}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        git("worktree", "add", "--detach", str(tree), earlier)
        try:
            for work in arguments.work:
                record = measured(work, {"before": tree, "now": ROOT}, arguments.rounds)
                record |= {"commit": provenance(0)["commit"], "before_commit": earlier, "machine": describe()}
                key = (work, earlier)
                kept = [r for r in content["records"] if (r["work"], r["before_commit"]) != key]
                content["records"] = [*kept, record]
                write(arguments.out, content)
        finally:
            git("worktree", "remove", "--force", str(tree))


if __name__ == "__main__":
    main()
