"""A line of a table of text-to-image results, as data: what to train, for which decoder, what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from csaligner.config import Strict, TrainConfig, load_config


class GenerationRecipe(Strict):
    """train_data, unpaired_texts: what `embed` is given; image_encoder: the one whose embeddings the decoder takes;
    paper: figures as printed; choices: what the paper leaves open and we chose."""

    name: str
    source: str
    decoder: str
    dim: Annotated[int, Field(ge=1)]
    image_encoder: str
    text_encoder: str
    train_data: str
    pairs: Annotated[int, Field(ge=1)] | None = None
    unpaired: str | None = None
    test_data: str
    pictures: Annotated[int, Field(ge=1)] = 30000
    steps: Annotated[int, Field(ge=1)] = 50
    guidance: Annotated[float, Field(ge=0)] = 4.0
    config: TrainConfig
    paper: Mapping[str, float]
    rivals: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    choices: tuple[str, ...] = ()


def load_recipe(path: Path) -> GenerationRecipe:
    """Raises InputError for a file that is not there, is not YAML, or holds an unknown key or a bad value."""
    return load_config(GenerationRecipe, path)
