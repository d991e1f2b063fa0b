"""Grid of generated images (`make generate`): held-out prompts as rows, methods as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from csaligner.datasets import open_dataset
from csaligner.datasets.images.load import load_image
from csaligner.datasets.split import item_split
from csaligner.decoders.decoder import Sampling, default_sampling, open_decoder
from csaligner.encoders import IMAGE_ENCODER, open_encoder
from csaligner.files import write_atomically
from csaligner.model import AlignedModel
from csaligner.types import Item

from .generate import enlarge
from .prompts import Prompt
from .text import BUNDLED_RUNS, TextToEmbedding, bundled_run

CELL, LABEL, HEAD, GAP = 96, 170, 26, 6
DRAWN = 224
CEILING, ITSELF = "true embedding", "original image"
TITLES = {"infonce": "InfoNCE", "eclipse": "ECLIPSE", "cs-aligner": "CS-Aligner"}


@dataclass(frozen=True)
class Grid:
    """columns: title -> images, one per prompt."""

    prompts: Sequence[str]
    columns: Mapping[str, Sequence[Image.Image]]


def held_out(count: int) -> list[Item]:
    """Return emoji of the test split at evenly spaced positions."""
    items = [item for item in open_dataset("openmoji").items() if item_split(item) == "test"]
    return [items[i * len(items) // count] for i in range(count)]


def make_grid(count: int = 12, sampling: Sampling | None = None, decoder: str = "micro") -> Grid:
    """Generate images from the first captions of held_out(count) with the bundled priors and from true embeddings.

    All methods use the same noise.
    """
    sampling = sampling or default_sampling(decoder)
    items = held_out(count)
    pictures = [load_image(item.image, DRAWN) for item in items]
    prompts = [item.captions[0] for item in items]
    opened = open_decoder(decoder)
    encoder = AlignedModel.of_encoders(open_encoder(opened.contract.encoder_id or IMAGE_ENCODER, "image"))
    columns: dict[str, Sequence[Image.Image]] = {}
    for name in BUNDLED_RUNS:
        text = TextToEmbedding.open(bundled_run(name))
        text.check(opened.contract)
        directions = text.directions([Prompt((prompt,), (1.0,)) for prompt in prompts])
        rows = opened.decode(text.raw(directions, opened.contract), sampling)
        columns[TITLES[name]] = [row[0] for row in rows]
    true = encoder.features_image(pictures)
    columns[CEILING] = [row[0] for row in opened.decode(true, sampling)]
    columns[ITSELF] = pictures
    return Grid(prompts, columns)


def draw_grid(grid: Grid) -> Image.Image:
    """Draw the grid: titles above, prompts on the left, cells of CELL pixels."""
    font = ImageFont.load_default(13)
    width = LABEL + len(grid.columns) * (CELL + GAP)
    sheet = Image.new("RGB", (width, HEAD + len(grid.prompts) * (CELL + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, prompt in enumerate(grid.prompts):
        pen.text((4, HEAD + y * (CELL + GAP) + CELL // 2), _cut(prompt), fill="black", font=font, anchor="lm")
    for x, (title, pictures) in enumerate(grid.columns.items()):
        left = LABEL + x * (CELL + GAP)
        pen.text((left + CELL // 2, HEAD // 2), title, fill="black", font=font, anchor="mm")
        for y, picture in enumerate(pictures):
            cell = enlarge(picture, CELL).resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (left, HEAD + y * (CELL + GAP)))
    return sheet


def save_grid(path: Path, count: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = draw_grid(make_grid(count))
    write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))
    return path


def _cut(prompt: str, length: int = 24) -> str:
    return prompt if len(prompt) <= length else prompt[: length - 3] + "..."
