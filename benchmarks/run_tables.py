"""Run the benchmarks behind the tables of aligned features again, one after the other, and write the tables.

    python benchmarks/run_tables.py [--features FILE] [--only NAME ...] [--list]

`make tables` calls it. A finished step leaves a marker in runs/tables and is skipped by the next call; delete the
marker to repeat a step. --list prints the steps with the minutes they take on two idle cores. --features: CLIP features
of 500 COCO pairs, (2, 500, 512), from "Mind the Gap" (Liang et al. 2022); the suite also uses convirt_500.npy and
videoclip_100.npy of the same folder, and skips what is not there. CSALIGNER_SHARED names the folder that holds data/.
Steps that need Debian's packages openclipart-png, openclipart-svg and tuxpaint-stamps-default fail without them and are
reported; the others go on.

The suite makes every table of docs/comparison.md in one run of one commit. Its budget is reduced so that it takes
about an hour on two cores: 8 settings per method, each tried on one inner split and at most 512 training images, and
of an array the first folds with 100 test images; three training seeds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "tables"
RESULTS = ROOT / "benchmarks" / "results"
SHARED = Path(os.environ.get("CSALIGNER_SHARED", ROOT.parent / "shared"))
ARRAYS = ("clip_coco_500", "videoclip_100", "convirt_500")
JSON = "suite.json"
STORES = ("tuxpaint", "openmoji", "openclipart")
BUDGET = ("--trials", "8", "--inner", "1", "--seeds", "3", "--trial-images", "512", "--test-images", "100")


@dataclass(frozen=True)
class Step:
    """command: arguments of python. result: file to copy to benchmarks/results under its name, None if the command
    writes it there. minutes: on two idle cores."""

    name: str
    minutes: float
    command: list[str]
    result: Path | None = None


def steps(features: Path) -> list[Step]:
    """Return the steps in order; later ones use stores and runs of earlier ones."""
    emoji, every = str(RUNS / "store-openmoji"), str(RUNS / "store-all")
    found = [
        Step("store-openmoji", 1.5, _csaligner("embed", "--data", "openmoji", "--out", emoji)),
        Step("store-all", 4, _csaligner("embed", "--data", "all", "--out", every)),
        *(
            Step(f"store-{name}", 2, _csaligner("embed", "--data", name, "--out", str(RUNS / f"store-{name}")))
            for name in ("tuxpaint", "openclipart")
        ),
        Step("near_duplicates", 0.5, _benchmark("near_duplicates", "--store", every)),
        Step("clip_coco", 8, _benchmark("clip_coco", "--features", str(features), "--seeds", "1")),
        _demo("openmoji", 2),
        _demo("all", 5),
        _suite(features),
        Step("suite_details", 0.5, _benchmark("suite_details", "--run", str(RUNS / "suite"))),
        Step("search_clip", 2, _benchmark("search", "clip", "--features", str(features), "--seeds", "1")),
        Step("search_quality", 1, _benchmark("search", "quality", "--store", every, *_runs_of_demo())),
        Step("balance", 2, _benchmark("balance", "--features", str(features), "--out", str(RESULTS / "balance.json"))),
        Step("unpaired", 6, _benchmark("unpaired")),
        Step("mechanism", 4, _benchmark("mechanism", "--store", emoji)),
        Step("learning_curves", 30, _learning_curves(features)),
    ]
    return found


def _learning_curves(features: Path) -> list[str]:
    return _benchmark("learning_curves", "--shared", str(features.parent.parent), "--stores", str(RUNS))


def _csaligner(*arguments: str) -> list[str]:
    return ["-m", "csaligner.cli", *arguments, "--quiet"]


def _benchmark(name: str, *arguments: str) -> list[str]:
    return [str(ROOT / "benchmarks" / f"{name}.py"), *arguments]


def _demo(data: str, minutes: float) -> Step:
    out = RUNS / f"demo-{data}"
    return Step(
        f"demo_{data}",
        minutes,
        _csaligner("demo", "--data", data, "--seeds", "1", "--out", str(out)),
        out / "results.json",
    )


def arrays(features: Path) -> list[Path]:
    """Return the arrays of the suite, whether they are there or not."""
    return [features.with_name(f"{name}.npy") for name in ARRAYS]


def _suite(features: Path) -> Step:
    """Return the comparison of all methods on all data, with sweeps on CLIP features."""
    data = [str(path) for path in arrays(features) if path.exists()] + [str(RUNS / f"store-{name}") for name in STORES]
    words = [word for path in data for word in ("--train-data", path)]
    sweeps = ("--grids", "bandwidth,temperature", "--sweep-data", data[0])
    out = RUNS / "suite"
    return Step("suite", 70, _csaligner("compare", "--suite", *words, *sweeps, *BUDGET, "--out", str(out)), out / JSON)


def _runs_of_demo() -> list[str]:
    folder = RUNS / "demo-all"
    runs = {"--run": "run-*-cs-aligner-*", "--infonce": "run-*-infonce-*"}
    return [word for option, pattern in runs.items() for run in folder.glob(pattern) for word in (option, str(run))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=SHARED / "data" / "clip_coco_500.npy")
    parser.add_argument("--only", nargs="+", help="run only these steps")
    parser.add_argument("--list", action="store_true", help="print the steps and their minutes")
    options = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    for path in arrays(options.features):
        if not path.exists():
            print(f"suite: {path} is not here and is skipped", file=sys.stderr)
    failed = []
    names = [step.name for step in steps(options.features)]
    for name in options.only or names:
        step = next(step for step in steps(options.features) if step.name == name)  # runs of the demo exist by now
        done = RUNS / f"{name}.done"
        state = "done" if done.exists() else f"about {step.minutes:g} minutes"
        print(f"{name}: {state}", flush=True)
        if options.list or done.exists():
            continue
        began = time.monotonic()
        if subprocess.run([sys.executable, *step.command], cwd=ROOT, check=False).returncode:
            failed.append(name)
            continue
        if step.result is not None:
            shutil.copyfile(step.result, RESULTS / f"{name}.json")
        done.write_text(f"{(time.monotonic() - began) / 60:.1f} minutes\n", encoding="utf-8")
    if not options.list:
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "tables.py")], cwd=ROOT, check=True)
    if failed:
        print(f"failed: {', '.join(failed)}; call again to repeat them", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
