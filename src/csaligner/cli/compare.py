"""The commands compare and sweep: all methods under one budget, and grids of settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from csaligner.wording import count_of

from .common import MEASURE, Quiet, app, err, renamed

if TYPE_CHECKING:
    from csaligner.comparison.compare import Comparison

SHOWN_POINTS = 12  # of a sweep, in the terminal


@app.command(cls=renamed({"--data": "--train-data"}), rich_help_panel=MEASURE)
def compare(  # noqa: PLR0913, PLR0917  (options of a command)
    train_data: Annotated[
        list[str],
        typer.Option(help="A store, or an .npy file of paired features (2, N, d), or its URL; repeatable."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings of `train` shared by all runs.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for compare.json and compare.html (suite.json, suite.html).")
    ] = Path("runs/compare"),
    methods: Annotated[str | None, typer.Option(help="Comma-separated names; default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of training seeds.")] = 3,
    trials: Annotated[int, typer.Option(min=0, help="Settings that each method tries on the validation data.")] = 12,
    inner: Annotated[
        int, typer.Option(min=1, max=5, help="Inner splits on which each setting is tried (arrays; a store has one).")
    ] = 5,
    trial_images: Annotated[
        int | None, typer.Option(min=20, help="Training images of a trial, evenly spaced; default: all.")
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(min=1, help="Stop after the folds of an array that test this many; default: 5 folds.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="A compare.json; its tuned settings are used and not tuned again.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Training epochs; default: 40.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per batch; default: 512.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes, one thread each.")] = 2,
    suite: Annotated[
        bool, typer.Option("--suite", help="Rank all methods over all data, with sweeps; writes suite.json.")
    ] = False,
    grids: Annotated[
        str, typer.Option(help="Grids of --suite, as of `csaligner sweep`; none: no sweeps.")
    ] = "bandwidth,temperature,batch,adapter",
    sweep_data: Annotated[list[str] | None, typer.Option(help="Data of the sweeps of --suite; default: all.")] = None,
    other_commit: Annotated[
        bool, typer.Option("--other-commit", help="Resume a --suite that another version of the code started.")
    ] = False,
    quick_: Annotated[bool, typer.Option("--quick", help="A few methods, at most 3 trials, 1 seed.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compare CS-Aligner with other methods, all tuned and trained under one budget."""
    from csaligner.comparison.compare import UNSELECTED, Budget
    from csaligner.comparison.methods import FREE, QUICK, TRAINED
    from csaligner.comparison.run import compare_and_write, read_settings
    from csaligner.comparison.suite import Suite, run_suite
    from csaligner.config import TrainConfig, load_config
    from csaligner.progress import progress
    from csaligner.remote import local

    words = [f"{k}={v}" for k, v in {"epochs": epochs, "batch_size": batch_size}.items() if v is not None]
    names = methods.split(",") if methods else list(QUICK if quick_ else (*FREE, *TRAINED))
    base = load_config(TrainConfig, None, [*UNSELECTED, *words, *(overrides or [])])
    trials, seeds = (min(trials, 3), 1) if quick_ else (trials, seeds)
    known = read_settings(settings) if settings else {}
    budget = Budget(base, trials, seeds, jobs, inner, trial_images, known)
    data = list(map(local, train_data))
    with progress(err, "compare", quiet) as update:

        def report(done: int, total: int, what: str) -> None:
            update(done, total, {})

        if suite:
            swept = [] if grids == "none" else grids.split(",")
            every = names if methods else []
            of = list(map(local, sweep_data or ()))
            asked = Suite(data, budget, out, every, swept, of, test_images, other_commit)
            found = run_suite(asked, report)
        else:
            found = compare_and_write(data, names, budget, out, report, test_images)
    _print_methods(found)
    name = "suite" if suite else "compare"
    err.print(f"results: {out / f'{name}.json'}, page: {out / f'{name}.html'}", highlight=False, soft_wrap=True)


def _print_methods(found: Comparison) -> None:
    from csaligner.comparison.run import datasets
    from csaligner.reporting.tables import print_table

    for dataset in datasets(found):
        Console().print(f"{dataset.name}:", highlight=False, markup=False)
        print_table(dataset.results, Console())
        for method, reason in dataset.left_out.items():
            err.print(f"{method} was skipped: {reason}", highlight=False, markup=False)


@app.command(cls=renamed({"--data": "--train-data"}), rich_help_panel=MEASURE)
def sweep(
    train_data: Annotated[
        list[str],
        typer.Option(help="A store, or an .npy file of paired features (2, N, d), or its URL; repeatable."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings of `train` shared by all runs.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for sweep.json and sweep.html.")] = Path("runs/sweep"),
    grids: Annotated[str, typer.Option(help="Comma-separated: bandwidth, temperature, batch, adapter.")] = "bandwidth",
    seeds: Annotated[int, typer.Option(min=1, help="Number of training seeds.")] = 1,
    epochs: Annotated[int | None, typer.Option(min=1, help="Training epochs; default: 40.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes, one thread each.")] = 2,
    quiet: Quiet = False,
) -> None:
    """Measure how bandwidth, weight, temperature, batch size and adapter size change the results."""
    from csaligner.comparison.compare import UNSELECTED, Budget
    from csaligner.comparison.sweep import JSON, sweep_and_write
    from csaligner.config import TrainConfig, load_config
    from csaligner.progress import progress
    from csaligner.remote import local

    words = [f"epochs={epochs}"] if epochs else []
    base = load_config(TrainConfig, None, [*UNSELECTED, *words, *(overrides or [])])
    budget = Budget(base, seeds=seeds, jobs=jobs)
    with progress(err, "sweep", quiet) as update:
        data = list(map(local, train_data))
        sweep_and_write(data, grids.split(","), budget, out, lambda done, total, what: update(done, total, {}))
    _print_points(out / JSON)
    err.print(f"results: {out / 'sweep.json'}, page: {out / 'sweep.html'}", highlight=False, soft_wrap=True)


def _print_points(path: Path) -> None:
    """Print the points of a sweep with the best scores, per dataset."""
    from csaligner.reporting.record import MethodResult
    from csaligner.reporting.tables import print_table

    record = json.loads(path.read_text(encoding="utf-8"))
    points, score = record["points"], record["score"]
    for name in dict.fromkeys(point["dataset"] for point in points):
        here = [point for point in points if point["dataset"] == name]
        best = sorted(here, key=lambda point: -sum(point["metrics"][score]))[:SHOWN_POINTS]
        results = [
            MethodResult(_settings(point["settings"]), seed, {key: v[seed] for key, v in point["metrics"].items()})
            for point in best
            for seed in range(len(point["metrics"][score]))
        ]
        which = f"the best {len(best)} of {len(here)} points" if len(best) < len(here) else count_of(len(here), "point")
        Console().print(f"{name}, {which}:", highlight=False, markup=False)
        print_table(results, Console())


def _settings(settings: dict[str, str]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in settings.items())
