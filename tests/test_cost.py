"""Cost of a recipe: parameters and FLOPs against real models at small size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from csaligner.checks import InputError
from csaligner.config import AdapterConfig, TrainConfig, build_config
from csaligner.cost import CostConfig, ModelSizes, cost_table, costs
from csaligner.recipes import load_recipe
from tests.support.commands import csaligner

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "retrieval" / "clip_l14_llama3_cc3m.yaml"


def sizes(folder: Path) -> ModelSizes:
    return ModelSizes.of_config(json.loads((folder / "config.json").read_text()))


def counted(model: Any, **inputs: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return int(counter.get_total_flops())


def test_a_language_model_has_these_parameters_and_flops(tiny_model: Callable[[str], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny_model("llama")
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")
    found = sizes(folder)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    ids = torch.ones(1, 9, dtype=torch.int64)
    assert counted(model, input_ids=ids) == pytest.approx(found.flops(9), rel=0.01)  # without the rotary angles


def test_a_vision_tower_has_these_parameters_and_flops(tiny_model: Callable[[str], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny_model("clip")
    config = transformers.CLIPConfig.from_pretrained(folder)
    config.vision_config.projection_dim = config.projection_dim
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(
        folder, config=config.vision_config, attn_implementation="eager"
    )
    found = sizes(folder)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert counted(model, pixel_values=torch.zeros(1, 3, 16, 16)) == found.flops(found.image_tokens)


def test_other_models_are_refused() -> None:
    with pytest.raises(InputError, match="lacks 'num_key_value_heads'"):
        ModelSizes.of_config(
            {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        )


def test_the_recipe_of_the_paper() -> None:
    """Published sizes: 304 million for ViT-L/14, 8.03 billion for Llama-3-8B with its head."""
    recipe = load_recipe(RECIPE)
    assert recipe.cost is not None
    assert recipe.cost.image.parameters == 303_966_208
    assert recipe.cost.text.parameters == 8_030_261_248 - 128_256 * 4096
    assert all(cost.memory < recipe.cost.machine.memory for cost in costs(recipe.cost, recipe.config))
    done = csaligner("recipe", RECIPE, "--cost")
    assert cost_table(recipe.cost, recipe.config) in done.stdout
    assert cost_table(recipe.cost, recipe.config) in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def test_adapters_are_counted_as_they_are() -> None:
    from csaligner.adapters.mlp import MLPAdapter
    from csaligner.adapters.start import blank

    tower = ModelSizes(hidden=6, layers=1, intermediate=8, heads=1, image=4, patch=2)
    adapter = AdapterConfig(name="mlp", hidden=7, blocks=2)
    held = sum(p.numel() for p in MLPAdapter(blank(6, 5), adapter).parameters())
    config = build_config(TrainConfig, {"image_adapter": adapter, "text_adapter": "identity", "dim": 5, "epochs": 1})
    sizes = CostConfig(image=tower, text=tower, pairs=10, caption_tokens=3)
    trained = costs(sizes, config)[-1]
    assert trained.memory == held * 16 + 10 * (6 + 6 + 8 * 5) * 4
