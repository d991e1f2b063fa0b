"""Commands index, search and index-export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from csaligner import model
from csaligner.cli import app
from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER


@pytest.fixture
def run(world: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line with the colour encoders instead of the bundled ones."""
    monkeypatch.setenv("COLUMNS", "300")
    by_id = {encoder.info.id: encoder for encoder in world.encoders}
    names = {IMAGE_ENCODER: world.images, TEXT_ENCODER: world.texts} | by_id
    monkeypatch.setattr(model, "open_encoder", lambda name, modality: names[name])
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_index_search_and_export(world: Any, run: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "255 0 0")
    world.picture("blue.png", (0, 0, 255), "0 0 255")
    made = run("index", "--run", world.run, "--data", world.folder, "--out", tmp_path / "ix", "-q")
    assert made.exit_code == 0, made.output
    assert re.search(r"\b4\b.*\b0\b.*\b0\b.*\b0\b", made.output)
    found = run("search", tmp_path / "ix", "250 10 10", "--only", "images", "--json")
    assert [hit["id"] for hit in json.loads(found.stdout)] == ["red", "blue"]
    found = run("search", tmp_path / "ix", "--image", world.folder / "blue.png", "-k", "1", "--only", "texts")
    assert "0 0 255" in found.stdout
    wrote = run("index-export", tmp_path / "ix", "--out", tmp_path / "e", "--format", "npy")
    assert wrote.exit_code == 0
    assert (tmp_path / "e" / "vectors.npy").is_file()


def test_control_characters_do_not_reach_the_terminal(world: Any, run: Any, tmp_path: Path) -> None:
    world.picture("x.png", (255, 0, 0), "\x1b[31mred [bold]and <b>loud</b>\x07")
    run("index", "--run", world.run, "--data", world.folder, "--out", tmp_path / "ix", "-q")
    shown = run("search", tmp_path / "ix", "red").stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]and <b>loud</b>" in " ".join(shown.split())


def test_neither_or_both_is_one_line(run: Any, tmp_path: Path) -> None:
    for words in ((), ("x", "--image", "y.png")):
        failed = run("search", tmp_path, *words)
        assert "either a text or --image" in str(failed.exception)


def index(world: Any, run: Any, out: Path) -> None:
    made = run("index", "--run", world.run, "--data", world.folder, "--out", out, "-q")
    assert made.exit_code == 0, made.output


def lines(output: str) -> list[str]:
    return [" ".join(line.split()) for line in output.splitlines() if line.strip()]


def test_one_result_per_image_with_the_caption_that_matched(world: Any, run: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "250 0 0\n200 60 60\n")
    world.picture("blue.png", (0, 0, 255), "0 0 255")
    world.write("notes.md", "120 120 0")
    index(world, run, tmp_path / "ix")
    found = lines(run("search", tmp_path / "ix", "200 60 60").stdout)[1:]
    assert [line.split()[0] for line in found if line[0].isdigit() and "." in line.split()[1]] == ["1", "2", "3"]
    assert "red.png" in found[0]
    assert found[1] == "200 60 60"
    assert sum("notes.md" in line for line in found) == 1


def test_whose_caption_a_text_is(world: Any, run: Any, tmp_path: Path) -> None:
    for name in ("red.png", "also-red.png"):
        world.picture(name, (255, 0, 0), "250 0 0")
    index(world, run, tmp_path / "ix")
    for only in ("text", "texts"):
        found = lines(run("search", tmp_path / "ix", "250 0 0", "--only", only).stdout)[1:]
        assert len(found) == 2
        assert found[0].endswith("text 250 0 0")
        assert re.fullmatch(r"caption of .*red.png and 1 more", found[1])


def test_only_accepts_the_singular_and_names_the_choices(world: Any, run: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "255 0 0")
    index(world, run, tmp_path / "ix")
    hits = json.loads(run("search", tmp_path / "ix", "red", "--only", "image", "--json").stdout)
    assert [hit["modality"] for hit in hits] == ["image"]
    assert "images" in str(run("search", tmp_path / "ix", "red", "--only", "videos").exception)
    help_ = run("search", "--help").stdout
    assert "images|texts" in help_
    assert "aligned|raw|centred" in help_
