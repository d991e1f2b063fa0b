"""Text-to-image recipes at small size: objective, adapters and results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from csaligner.adapters.aligner import Aligner, align
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.decoders.folder import NAMES
from csaligner.generation.recipe import load_recipe
from csaligner.training.samplers import PairSampler
from csaligner.training.trainer import Trainer
from csaligner.types import TokenRows
from tests.support.features import make_pairs

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "generation").glob("*.yaml"))
DIM = 8


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_and_trains_its_text_side_alone(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.decoder in NAMES
    assert recipe.dim == {"kandinsky-2.2": 1280, "karlo": 768, "stable-unclip": 1024}[recipe.decoder]
    small = recipe.config.model_dump(exclude_unset=True) | {"batch_size": 20, "epochs": 2, "precision": "fp32"}
    small.pop("lora", None)  # LoRA: tests/adapters
    if small["text_adapter"]["name"] == "prior":
        small["text_adapter"] |= {"hidden": 16, "blocks": 2}
    config = build_config(TrainConfig, small)
    pairs = make_pairs(40, (DIM, 5))
    if config.reads_states:
        pairs = replace(pairs, states=TokenRows(torch.randn(100, 7), torch.tensor([2, 3] * 20)))
    torch.manual_seed(0)
    model = Aligner.fit_start(pairs, config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Trainer(model, PairSampler(pairs, config.batch_size), config).fit()
    after = model.state_dict()
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved == {"text_adapter", "log_logit_scale"}
    aligned = align(model, pairs)
    assert model.reads_states == config.reads_states
    assert bool(torch.isfinite(aligned.text).all())
    assert aligned.image.shape == aligned.text.shape == (40, DIM)


@pytest.mark.parametrize(("name", "layers", "width", "paper"), [("karlo", 12, 768, 1.3), ("kandinsky", 32, 1280, 6)])
def test_lora_has_the_parameters_of_the_paper(name: str, layers: int, width: int, paper: float) -> None:
    transformers = pytest.importorskip("transformers")
    lora = load_recipe(RECIPES[0].parent / f"{name}_lora.yaml").config.lora
    assert lora is not None
    assert lora.targets is not None
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    with torch.device("meta"):
        tower = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, num_attention_heads=width // 64))
    layers_with = [m for n, m in tower.named_modules() if n.rpartition(".")[2] in lora.targets]
    count = sum(lora.rank * (layer.in_features + layer.out_features) for layer in layers_with)
    assert count / 1e6 == pytest.approx(paper, rel=0.03)


def test_recipes_cover_the_decoders_of_the_paper() -> None:
    assert {load_recipe(path).decoder for path in RECIPES} == {"kandinsky-2.2", "karlo", "stable-unclip"}


def test_a_misspelt_key_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPES[0].read_text().replace("guidance:", "guidence:"))
    with pytest.raises(InputError, match=r"guidence.*'guidance'"):
        load_recipe(path)
