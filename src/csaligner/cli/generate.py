"""generate, generate-grid, train-decoder: from a prompt to a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Quiet, app, err


@app.command()
def generate(  # noqa: PLR0913, PLR0917  (options of a command)
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Mixed: 'an apple::0.7 a pear::0.3'.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run that `train` wrote; the one in the package if not given.")
    ] = None,
    decoder: Annotated[
        str, typer.Option(help="micro, kandinsky-2.2, karlo, stable-unclip, or a folder of diffusers.")
    ] = "micro",
    image: Annotated[Path | None, typer.Option(help="Variations of this picture instead of prompts.")] = None,
    negative: Annotated[str | None, typer.Option(help="A prompt to keep away from.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Pictures for each prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Of denoising.")] = 30,
    guidance: Annotated[float, typer.Option(min=0, help="1 or less: none.")] = 4.0,
    out: Annotated[Path, typer.Option(help="File; several pictures get numbers.")] = Path("generated.png"),
    pixels: Annotated[int, typer.Option(min=0, help="Enlarge smaller pictures to this side; 0: as they are.")] = 256,
) -> None:
    """Draw prompts: one forward pass of the text adapter, then the decoder. No diffusion prior."""
    from csaligner.decoders.decoder import Sampling
    from csaligner.generation.generate import GenerationRequest, save_pictures
    from csaligner.generation.generate import generate as run_generate

    wish = GenerationRequest(tuple(prompts or ()), image, negative)
    rows = run_generate(wish, run=run, decoder=decoder, sampling=Sampling(n, seed, steps, guidance))
    for path in save_pictures([picture for row in rows for picture in row], out, pixels):
        err.print(str(path), highlight=False)


@app.command("generate-grid")
def generate_grid(
    out: Annotated[Path, typer.Option(help="A .png file.")] = Path("runs/generate/grid.png"),
    count: Annotated[int, typer.Option(min=1, help="Prompts.")] = 12,
) -> None:
    """Held-out captions down, methods across, the decoder's best (true image embeddings) last. Needs no download."""
    from csaligner.generation.grid import save_grid

    err.print(f"grid: {save_grid(out, count)}", highlight=False)


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
    from csaligner.decoders.micro_training import DecoderTraining
    from csaligner.generation.train import train_decoder as run
    from csaligner.progress import progress
    from csaligner.store.store import Store

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
