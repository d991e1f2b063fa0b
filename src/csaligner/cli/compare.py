"""compare, sweep: every method under one budget; every point of a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet, app, err


@app.command()
def compare(  # noqa: PLR0913, PLR0917  (the budget is part of the question)
    data: Annotated[list[Path], typer.Option(help="A store, or an .npy of paired features (2, N, d); repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder for compare.json and compare.html.")] = Path("runs/compare"),
    methods: Annotated[str | None, typer.Option(help="Comma-separated names; all if not given.")] = None,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    trials: Annotated[int, typer.Option(min=0, help="Settings tried on validation for each method.")] = 12,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
    quick_: Annotated[bool, typer.Option("--quick", help="A few methods, 3 trials, 1 seed.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train rivals and CS-Aligner under one budget, each tuned with the same number of trials, and compare."""
    from csaligner.comparison.compare import Budget
    from csaligner.comparison.methods import FREE, QUICK, TRAINED
    from csaligner.comparison.run import compare_and_write
    from csaligner.config import TrainConfig, load_config
    from csaligner.progress import progress

    words = [f"{k}={v}" for k, v in {"epochs": epochs, "batch_size": batch_size}.items() if v is not None]
    names = methods.split(",") if methods else list(QUICK if quick_ else (*FREE, *TRAINED))
    base = load_config(TrainConfig, None, words)
    budget = Budget(base, trials=min(trials, 3) if quick_ else trials, seeds=1 if quick_ else seeds, jobs=jobs)
    with progress(err, "compare", quiet) as update:
        compare_and_write(data, names, budget, out, lambda done, total, what: update(done, total, {}))
    err.print(f"results: {out / 'compare.json'}, page: {out / 'compare.html'}", highlight=False)


@app.command()
def sweep(
    data: Annotated[list[Path], typer.Option(help="A store, or an .npy of paired features (2, N, d); repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder for sweep.json and sweep.html.")] = Path("runs/sweep"),
    grids: Annotated[str, typer.Option(help="Comma-separated: bandwidth, temperature, batch, adapter.")] = "bandwidth",
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
    quiet: Quiet = False,
) -> None:
    """How much sigma, lambda, temperature, batch and adapter size matter, and what `auto` makes of it."""
    from csaligner.comparison.compare import Budget
    from csaligner.comparison.sweep import sweep_and_write
    from csaligner.config import TrainConfig, load_config
    from csaligner.progress import progress

    base = load_config(TrainConfig, None, [f"epochs={epochs}"] if epochs else [])
    budget = Budget(base, seeds=seeds, jobs=jobs)
    with progress(err, "sweep", quiet) as update:
        sweep_and_write(data, grids.split(","), budget, out, lambda done, total, what: update(done, total, {}))
    err.print(f"results: {out / 'sweep.json'}, page: {out / 'sweep.html'}", highlight=False)
