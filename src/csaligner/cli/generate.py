"""The commands generate, generate-grid and train-decoder: images from text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import GENERATE, Quiet, app, as_text, err


@app.command(rich_help_panel=GENERATE)
def generate(  # noqa: PLR0913, PLR0917  (options of a command)
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="Texts to draw; mixtures are written 'an apple::0.7 a pear::0.3'."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="A run folder of `train`; default: the bundled aligner.")] = None,
    decoder: Annotated[
        str, typer.Option(help="micro, kandinsky-2.2, karlo, stable-unclip, or a diffusers folder.")
    ] = "micro",
    image: Annotated[Path | None, typer.Option(help="Draw variations of this image instead of prompts.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of images per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Number of denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance scale; 1 or less: no guidance.")] = 4.0,
    out: Annotated[Path, typer.Option(help="Image file; several images are numbered.")] = Path("generated.png"),
    pixels: Annotated[int, typer.Option(min=0, help="Enlarge smaller images to this size; 0: no enlargement.")] = 256,
) -> None:
    """Generate images from text without a diffusion prior."""
    from csaligner.decoders.decoder import Sampling
    from csaligner.generation.generate import GenerationRequest, save_pictures
    from csaligner.generation.generate import generate as run_generate

    wish = GenerationRequest(tuple(map(as_text, prompts or ())), image, as_text(negative) if negative else None)
    rows = run_generate(wish, run=run, decoder=decoder, sampling=Sampling(n, seed, steps, guidance))
    for path in save_pictures([picture for row in rows for picture in row], out, pixels):
        err.print(str(path), highlight=False)


@app.command("generate-grid", rich_help_panel=GENERATE)
def generate_grid(
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("runs/generate/grid.png"),
    count: Annotated[int, typer.Option(min=1, help="Number of prompts.")] = 12,
) -> None:
    """Generate a grid of held-out captions (rows) by methods (columns); needs no download."""
    from csaligner.generation.grid import save_grid

    err.print(f"grid: {save_grid(out, count)}", highlight=False)


@app.command("train-decoder", rich_help_panel=GENERATE)
def train_decoder(
    train_data: Annotated[list[Path], typer.Option(help="A store of images; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder of the decoder; an interrupted training in it resumes.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings that override the config.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train the micro decoder on the train split of stores; `generate --decoder` reads its folder."""
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
