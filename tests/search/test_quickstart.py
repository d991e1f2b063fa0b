"""quickstart: trains with enough captions, else uses the bundled aligner."""

from __future__ import annotations

import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

from csaligner import encoders, model
from csaligner import quickstart as module
from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig
from csaligner.quickstart import QuickstartResult, QuickstartSettings, quickstart
from csaligner.search import Index


@pytest.fixture
def start(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """quickstart with the colour encoders, and their aligner as the bundled one."""
    names = {encoder.info.id: encoder for encoder in world.encoders}
    names |= {encoders.IMAGE_ENCODER: world.images, encoders.TEXT_ENCODER: world.texts}
    for place in (model, module):
        monkeypatch.setattr(place, "open_encoder", lambda name, modality=None: names[name])
    monkeypatch.setattr(model, "ASSET", world.run)
    monkeypatch.setattr(module, "IMAGE_ENCODER", world.images.info.id)
    monkeypatch.setattr(module, "TEXT_ENCODER", world.texts.info.id)
    monkeypatch.setattr(module, "ENOUGH", 60)
    config = TrainConfig(epochs=1, batch_size=16, image_adapter="linear", text_adapter="linear")  # type: ignore[arg-type]

    def run(
        out: Path, data: Path | None = None, stop: Any = None, gate: bool = False
    ) -> tuple[QuickstartResult, list[str]]:
        said: list[str] = []

        def step(title: str) -> Any:
            said.append(title)
            return lambda done, total, values=None: stop(title, done) if stop else None

        settings = QuickstartSettings(config=config.model_copy(update={"gate": gate}), workers=1)
        return quickstart(data or world.folder, out, said.append, step, settings), said

    return run


def test_few_captions_use_the_bundled_aligner(world: Any, start: Any, tmp_path: Path) -> None:
    world.many(20)
    result, said = start(tmp_path / "out")
    assert result.run == "bundled"
    assert len(result.index) == 40
    assert result.index.search("200 30 90", k=1)
    assert re.findall(r"\d+", said[0])[:3] == ["20"] * 3
    assert [line for line in said if re.match(r"\d/\d ", line)] == ["1/2 embedding", "2/2 indexing"]
    assert result.held_out is None


def test_many_captions_train_and_the_better_aligner_is_taken(world: Any, start: Any, tmp_path: Path) -> None:
    world.many(90)
    result, said = start(tmp_path / "out")
    assert set(result.scores) == {"trained", "bundled"}
    best = max(result.scores, key=lambda name: result.scores[name])
    assert (result.run == "bundled") == (best == "bundled")
    assert set(result.held_out.others) == {"untrained", "trained", "bundled"} - {best}
    assert result.held_out.line in said
    assert any(line.startswith("warning") for line in said) == (result.held_out.images < 30)
    assert (world.images.seen, world.texts.seen) == (90, 90)  # one pass for the training and the index
    again, said = start(tmp_path / "out")
    assert (again.report.added, again.report.unchanged) == (0, 180)
    assert (again.run, again.scores) == (result.run, {})
    assert (world.images.seen, world.texts.seen) == (90, 90)


def test_training_that_does_not_help_is_not_called_trained(
    world: Any, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "score_per_image", lambda pairs: torch.zeros(1))  # a tie: the run, not the bundled one
    world.many(90)
    result, said = start(tmp_path / "out", gate=True)  # too few pairs for the gate
    assert set(result.held_out.others) == {"bundled"}
    assert any(line.startswith("using the untrained alignment") for line in said)


def test_an_added_image_is_embedded_alone_and_a_changed_caption_trains_again(
    world: Any, start: Any, tmp_path: Path
) -> None:
    world.many(90)
    start(tmp_path / "out")
    world.picture("new.png", (1, 2, 3), "1 2 3")
    added, said = start(tmp_path / "out")
    assert (added.report.added, added.scores, world.images.seen) == (2, {}, 91)
    assert any("1 captioned image" in line for line in said)
    world.write("000.txt", "9 9 9")
    changed, _ = start(tmp_path / "out")
    assert changed.scores
    assert world.images.seen == 91
    world.write("001.txt", "8 8 8")
    assert start(tmp_path / "out")[0].scores


def test_captions_that_appear_later_train_without_embedding_the_images_again(
    world: Any, start: Any, tmp_path: Path
) -> None:
    world.many(90)
    lines = [f"{p.stem}.png,{p.read_text()}" for p in sorted(world.folder.glob("*.txt"))]
    for path in world.folder.glob("*.txt"):
        path.unlink()
    first, _ = start(tmp_path / "out")
    assert (first.run, len(first.index)) == ("bundled", 90)
    world.write("captions.csv", "\n".join(["image,caption", *lines]))
    second, said = start(tmp_path / "out")
    assert second.scores
    assert world.images.seen == 90
    assert second.index.counts == {"image": 90, "text": 90}
    assert any(line.startswith("captions: captions.csv") for line in said)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("when", ["1/3 embedding", "2/3 training", "3/3 indexing"])
def test_the_next_call_resumes(world: Any, start: Any, tmp_path: Path, when: str) -> None:
    world.many(90)

    def stop(title: str, done: int) -> None:
        if title == when and done >= 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        start(tmp_path / "out", stop=stop)
    seen = world.images.seen
    assert seen >= 32
    if when == "1/3 embedding":
        assert seen < 90
    result, _ = start(tmp_path / "out")
    assert world.images.seen == 90
    assert len(result.index) == 180
    assert result.index.check() is None


def test_a_table_with_columns_of_any_name(world: Any, start: Any, tmp_path: Path) -> None:
    world.many(3)
    table = world.write("list.csv", "n;photo;what\n1;000.png;1 1 1\n2;001.png;2 2 2\n")
    (world.folder / "list.csv").rename(world.folder / "captions.csv")
    result, said = start(tmp_path / "out", data=table.with_name("captions.csv"))
    assert result.index.counts == {"image": 2, "text": 2}
    assert "photo" in said[0]


def test_encoders_without_a_common_space_need_captions(
    world: Any, start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.many(20)
    monkeypatch.setattr(module, "IMAGE_ENCODER", world.texts.info.id)  # the pair is not the bundled one
    monkeypatch.setattr(
        module, "open_encoder", lambda name, modality: world.images if modality == "image" else world.texts
    )
    with pytest.raises(InputError, match="share no space"):
        start(tmp_path / "out")


def test_a_folder_of_somebody_else_is_not_removed(world: Any, start: Any, tmp_path: Path) -> None:
    world.many(90)
    (tmp_path / "out/run").mkdir(parents=True)
    (tmp_path / "out/run/diary.txt").write_text("mine")
    with pytest.raises(InputError, match="out"):
        start(tmp_path / "out")
    assert (tmp_path / "out/run/diary.txt").is_file()


def test_the_bundled_aligner_matches_the_bundled_encoders_and_is_small() -> None:
    weights = model.ASSET / "model.safetensors"
    assert weights.stat().st_size < 4_000_000
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


def test_photographs_are_said_to_be_found_by_class_names(tmp_path: Path) -> None:
    photographs = Path(str(files("sklearn.datasets.images")))
    (tmp_path / "photos").mkdir()
    for name in ("china.jpg", "flower.jpg"):
        shutil.copy(photographs / name, tmp_path / "photos")
    said: list[str] = []
    settings = QuickstartSettings(workers=1)
    result = quickstart(tmp_path / "photos", tmp_path / "out", said.append, lambda title: lambda *_: None, settings)
    assert any(line.startswith("2 of 2 images look like photos") and "people" in line for line in said)
    assert "flower.jpg" in str(result.index.search("a red and yellow flower", k=1)[0])
