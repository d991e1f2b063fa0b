"""train-decoder, generate: from a prompt to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet, app, err


@app.command("train-decoder")
def train_decoder(
    train_data: Annotated[list[Path], typer.Option(help="A store of pictures; may be given several times.")],
    out: Annotated[Path, typer.Option(help="Folder; an interrupted training in it goes on.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train the micro decoder on the train split of stores; what it saves, `generate --decoder` reads."""
    from csaligner.config import load_config
    from csaligner.data.store import Store
    from csaligner.decoders.micro_training import DecoderTraining
    from csaligner.generation.train import train_decoder as run
    from csaligner.progress import progress

    settings = load_config(DecoderTraining, config, overrides or [])
    stores = [Store.open(path) for path in train_data]
    with progress(err, "pictures", quiet) as draw, progress(err, "train-decoder", quiet) as update:
        folder = run(
            stores,
            settings,
            out,
            pictures=draw,
            report=lambda stage, step, steps, loss: update(step, steps, {f"loss/{stage}": loss}),
        )
    err.print(f"decoder: {folder}", highlight=False)
