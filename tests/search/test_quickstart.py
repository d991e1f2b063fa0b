"""quickstart: trains with enough captions, else uses the bundled aligner."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from csaligner import encoders, model
from csaligner import pipeline as runs
from csaligner import quickstart as module
from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig
from csaligner.quickstart import QuickstartResult, quickstart
from csaligner.search import Index


@pytest.fixture
def start(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """quickstart with the colour encoders, and their aligner as the bundled one."""
    names = {encoder.info.id: encoder for encoder in world.encoders}
    names |= {encoders.IMAGE_ENCODER: world.images, encoders.TEXT_ENCODER: world.texts}
    for place in (model, runs):
        monkeypatch.setattr(place, "open_encoder", lambda name, modality=None: names[name])
    for place in (model, module):
        monkeypatch.setattr(place, "ASSET", world.run)
    monkeypatch.setattr(module, "ENOUGH", 60)
    config = TrainConfig(epochs=1, batch_size=16, image_adapter="linear", text_adapter="linear")  # type: ignore[arg-type]

    def run(out: Path) -> tuple[QuickstartResult, list[str]]:
        said: list[str] = []
        result = quickstart(
            world.folder, out, said.append, lambda done, total, values=None: None, config=config, workers=0
        )
        return result, said

    return run


def test_few_captions_use_the_bundled_aligner(world: Any, start: Any, tmp_path: Path) -> None:
    world.many(20)
    result, said = start(tmp_path / "out")
    assert result.run == "bundled"
    assert len(result.index) == 40
    assert result.index.search("200 30 90", k=1)
    assert re.findall(r"\d+", said[0])[:3] == ["20"] * 3
    assert any("about" in line for line in said)


def test_many_captions_train_and_the_better_aligner_is_taken(world: Any, start: Any, tmp_path: Path) -> None:
    world.many(90)
    result, said = start(tmp_path / "out")
    assert set(result.scores) == {"trained", "bundled"}
    best = max(result.scores, key=lambda name: result.scores[name])
    assert (result.run == "bundled") == (best == "bundled")
    assert any("held-out captions" in line for line in said)
    again, said = start(tmp_path / "out")
    assert (again.report.added, again.report.unchanged) == (0, 180)
    assert any("only what changed" in line for line in said)


def test_the_bundled_aligner_matches_the_bundled_encoders_and_is_small() -> None:
    weights = model.ASSET / "model.safetensors"
    assert weights.stat().st_size < 3_000_000
    config = Aligner.load(model.ASSET).config
    assert (config.dim_image, config.dim_text) == (1280, 384)
    assert config.image_encoder is not None
    assert config.text_encoder is not None
    assert (model.ASSET / "README.md").is_file()


def test_a_folder_that_is_not_there(start: Any, world: Any, tmp_path: Path) -> None:
    world.folder.rmdir()
    with pytest.raises(InputError, match="folder"):
        start(tmp_path / "out")


def test_search_finds_the_index_in_the_folder_of_quickstart(world: Any, start: Any, tmp_path: Path) -> None:
    world.many(20)
    result, _ = start(tmp_path / "out")
    assert Index.open(tmp_path / "out", world.encoders).path == result.index.path
