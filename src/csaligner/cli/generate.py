"""The commands generate and generate-grid: images from text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import GENERATE, app, as_text, err

STEPS = "Number of denoising steps; default: 12 for micro, 30 for other decoders."
GUIDANCE = "Guidance scale; 1 or less: no guidance; default: 1.5 for micro, 4 for other decoders."


@app.command(rich_help_panel=GENERATE)
def generate(  # noqa: PLR0913, PLR0917  (options of a command)
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="Texts to draw; mixtures are written 'an apple::0.7 a pear::0.3'."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="A run folder of `train`, or its URL; default: the bundled aligner.")
    ] = None,
    decoder: Annotated[
        str, typer.Option(help="micro, kandinsky-2.2, karlo, stable-unclip, or a diffusers folder.")
    ] = "micro",
    image: Annotated[Path | None, typer.Option(help="Draw variations of this image instead of prompts.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of images per prompt.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help=STEPS)] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help=GUIDANCE)] = None,
    out: Annotated[Path, typer.Option(help="Image file; several images are numbered.")] = Path("generated.png"),
    pixels: Annotated[int, typer.Option(min=0, help="Enlarge smaller images to this size; 0: no enlargement.")] = 256,
) -> None:
    """Generate images from text without a diffusion prior."""
    from csaligner.decoders.decoder import default_sampling
    from csaligner.generation.generate import GenerationRequest, save_pictures
    from csaligner.generation.generate import generate as run_generate
    from csaligner.remote import local

    wish = GenerationRequest(tuple(map(as_text, prompts or ())), image, as_text(negative) if negative else None)
    sampling = default_sampling(decoder, n=n, seed=seed, steps=steps, guidance=guidance)
    rows = run_generate(wish, run=None if run is None else local(run), decoder=decoder, sampling=sampling)
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
