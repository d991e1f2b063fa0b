"""Recipes of published text-to-image results: training settings, decoder and reported values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from csaligner.config import Strict, TrainConfig, load_config


class GenerationRecipe(Strict):
    """One row of a table of results. train_data, unpaired: input of `embed`; image_encoder: the decoder's image
    encoder; paper: reported values; choices: settings the paper does not specify."""

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
    """Read a recipe. Raises InputError for a missing file, invalid YAML, an unknown key or an invalid value."""
    return load_config(GenerationRecipe, path)
