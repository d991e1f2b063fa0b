"""recipe: a table of the paper, from data to numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .common import Quiet, app, err


@app.command()
def recipe(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file of recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None,
    out: Annotated[Path, typer.Option(help="Folder for stores, run and the table.")] = Path("runs/recipe"),
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")] = 2,
    quiet: Quiet = False,
) -> None:
    """Embed, train and measure as a recipe says, and put the numbers beside the published ones."""
    from csaligner.progress import progress
    from csaligner.recipes import TABLE, load_recipe, run_recipe
    from csaligner.store.embed import ExtractSettings

    loaded = load_recipe(path, overrides or [])
    with progress(err, loaded.name, quiet) as update:
        settings = ExtractSettings(workers=workers)
        run_recipe(loaded, out, settings, lambda what, done, total: update(done, total, {}))
    Console().print((out / TABLE).read_text(encoding="utf-8"), markup=False, highlight=False)
