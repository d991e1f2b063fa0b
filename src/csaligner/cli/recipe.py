"""The command recipe: reproduce a table of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .common import MEASURE, Quiet, app, err


@app.command(rich_help_panel=MEASURE)
def recipe(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file of the folder recipes.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings that override the recipe.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the stores, the run and the table.")] = Path("runs/recipe"),
    workers: Annotated[int, typer.Option(min=0, help="Number of processes that decode images.")] = 2,
    cost: Annotated[
        bool, typer.Option("--cost", help="Only print the memory and time that the recipe needs, from its model sizes.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Embed, train and evaluate by a recipe, and print the results beside the published ones."""
    from csaligner.checks import InputError
    from csaligner.cost import cost_table
    from csaligner.progress import progress
    from csaligner.recipes import TABLE, load_recipe, run_recipe
    from csaligner.store.embed import ExtractSettings

    loaded = load_recipe(path, overrides or [])
    if cost:
        if loaded.cost is None:
            raise InputError(f"cost: {path} has no sizes of its models; add them under cost:")
        Console().print(cost_table(loaded.cost, loaded.config), markup=False, highlight=False)
        return
    with progress(err, loaded.name, quiet) as update:
        settings = ExtractSettings(workers=workers)
        run_recipe(loaded, out, settings, lambda what, done, total: update(done, total, {}))
    Console().print((out / TABLE).read_text(encoding="utf-8"), markup=False, highlight=False)
