"""Retrieval recipes on small models and data in the real formats, and their results table."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csaligner.recipes import JSON, TABLE, load_recipe, run_recipe, table
from csaligner.store.embed import ExtractSettings

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "retrieval").glob("*.yaml"))
WORDS = "a red blue green dog cat bird tree house car on under the"


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def caption(number: int) -> str:
    words = WORDS.split()
    return " ".join(words[(number * step) % len(words)] for step in (1, 2, 3, 5))


def make_data(root: Path) -> dict[str, Path]:
    """Write small data in the formats of CC3M (tar), Karpathy splits (JSON), Urban1k and DOCCI."""
    with tarfile.open(root / "00000.tar", "w") as tar:
        for i in range(40):
            for suffix, content in ((".png", picture(i)), (".txt", caption(i).encode())):
                member = tarfile.TarInfo(f"{i:06d}{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    flickr, urban, docci = root / "flickr", root / "urban", root / "docci"
    for folder in (flickr, urban / "image", urban / "caption", docci / "images"):
        folder.mkdir(parents=True)
    karpathy, lines = [], []
    for i in range(6):
        (flickr / f"{i}.png").write_bytes(picture(100 + i))
        sentences = [{"raw": caption(100 + i + k)} for k in range(5)]
        karpathy.append({"filename": f"{i}.png", "split": "test", "imgid": i, "sentids": [], "sentences": sentences})
        (urban / "image" / f"{i}.png").write_bytes(picture(200 + i))
        (urban / "caption" / f"{i}.txt").write_text(caption(200 + i), encoding="utf-8")
        (docci / "images" / f"test_{i}.png").write_bytes(picture(300 + i))
        lines.append(json.dumps({"split": "test", "image_file": f"test_{i}.png", "description": caption(300 + i)}))
    (flickr / "dataset_flickr30k.json").write_text(json.dumps({"images": karpathy}), encoding="utf-8")
    (docci / "docci_descriptions.jsonlines").write_text("\n".join(lines), encoding="utf-8")
    return {
        "train": root / "00000.tar",
        "flickr30k": flickr / "dataset_flickr30k.json",
        "urban1k": urban,
        "docci": docci / "docci_descriptions.jsonlines",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.stem))
def test_recipe_runs_on_tiny_models_and_fills_its_table(
    path: Path, tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    data = make_data(tmp_path)
    words = [
        f"image_encoder={tiny_model('clip')}",
        f"text_encoder={tiny_model('llama')}?pooling=mean",
        f"train.data={data['train']}",
        *(f"tests.{name}.data={data[name]}" for name in ("flickr30k", "urban1k", "docci")),
        *("config.epochs=1", "config.dim=8", "config.image_adapter.hidden=8", "config.text_adapter.hidden=8"),
    ]
    recipe = load_recipe(path, words)
    found = run_recipe(recipe, tmp_path / "out", ExtractSettings(workers=0))
    assert set(found) == set(recipe.tests)
    record = json.loads((tmp_path / "out" / JSON).read_text(encoding="utf-8"))
    written = (tmp_path / "out" / TABLE).read_text(encoding="utf-8")
    for name, test in recipe.tests.items():
        for metric, published in test.paper.items():
            ours = record["ours"][name][metric]
            assert 0 <= ours <= 1
            assert f"| {name} | {metric} | {100 * published:.1f} | {100 * ours:.1f} |" in written
    assert record["ours"]["flickr30k"]["n_captions"] == 30


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.stem))
def test_the_table_is_ready_before_anything_ran(path: Path) -> None:
    recipe = load_recipe(path)
    empty = table(recipe, {})
    assert empty.count("| - |") == sum(len(test.paper) for test in recipe.tests.values())
    assert recipe.choices
