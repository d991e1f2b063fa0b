"""Commands index, search and index-export."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from csaligner import model
from csaligner.app.server import make_app
from csaligner.cli import app
from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER
from csaligner.search import Index
from csaligner.search.manifest import write_manifest
from tests.support.commands import csaligner


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
    assert "2 images and 2 texts" in made.output
    found = run("search", tmp_path / "ix", "250 10 10", "--only", "images", "--json")
    assert [hit["id"] for hit in json.loads(found.stdout)] == ["red", "blue"]
    found = run("search", tmp_path / "ix", "--image", world.folder / "blue.png", "-k", "1", "--only", "texts")
    assert "0 0 255" in found.stdout
    wrote = run("index-export", tmp_path / "ix", "--out", tmp_path / "e", "--format", "npy")
    assert wrote.exit_code == 0
    assert (tmp_path / "e" / "vectors.npy").is_file()


def test_images_and_captions_as_one_item(world: Any, run: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "255 0 0")
    world.picture("blue.png", (0, 0, 255), "0 0 255")
    world.write("note.md", "0 255 0")
    words = ("index", "--run", world.run, "--data", world.folder, "--out", tmp_path / "ix", "-q")
    made = run(*words, "--fuse", "0.5")
    assert made.exit_code == 0, made.output
    assert "2 images with captions as one item, weight 0.5" in made.output
    assert "no change" in run(*words).output
    found = json.loads(run("search", tmp_path / "ix", "250 10 10", "--json").stdout)
    assert [(hit["id"], hit["fused"]) for hit in found][:1] == [("red", True)]
    assert "255 0 0" in run("search", tmp_path / "ix", "250 10 10", "-k", "1").stdout
    for weight in ("2", "half"):
        error = run(*words, "--fuse", weight).exception
        assert "fuse" in str(error)
        assert "\n" not in str(error)


def test_control_characters_do_not_reach_the_terminal(world: Any, run: Any, tmp_path: Path) -> None:
    world.picture("x.png", (255, 0, 0), "\x1b[31mred [bold]and <b>loud</b>\x07")
    run("index", "--run", world.run, "--data", world.folder, "--out", tmp_path / "ix", "-q")
    shown = run("search", tmp_path / "ix", "red").stdout
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[bold]and <b>loud</b>" in " ".join(shown.split())


def test_neither_text_nor_image_is_one_line(run: Any, tmp_path: Path) -> None:
    assert "--image" in str(run("search", tmp_path).exception)
    for words in (("x",), ("--image", "y.png")):
        assert "weight" in str(run("search", tmp_path, *words, "--image-weight", "0.5").exception)


def test_words_and_an_image_are_one_query(world: Any, run: Any, tmp_path: Path) -> None:
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255)), ("violet", (180, 0, 180))):
        world.picture(f"{name}.png", colour, " ".join(map(str, colour)))
    index(world, run, tmp_path / "ix")
    both = ("search", tmp_path / "ix", "255 0 0", "--image", world.folder / "blue.png")

    def found(*words: Any) -> list[dict[str, Any]]:
        done = run(*words, "--only", "images", "--json")
        assert done.exit_code == 0, done.output
        hits: list[dict[str, Any]] = json.loads(done.stdout)
        return hits

    assert found(*both)[0]["id"] == "violet"
    assert found(*both, "--image-weight", "0") == found("search", tmp_path / "ix", "255 0 0")
    assert found(*both, "--image-weight", "1") == found("search", tmp_path / "ix", "--image", world.folder / "blue.png")
    assert "violet" in lines(run(*both).stdout)[1]
    assert "weight" in str(run(*both, "--image-weight", "1.5").exception)


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


def test_an_update_says_what_changed(world: Any, run: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "255 0 0")
    world.picture("blue.png", (0, 0, 255))
    words = ("index", "--run", world.run, "--data", world.folder, "--out", tmp_path / "ix", "-q")
    assert "2 images and 1 text\n" in run(*words).output
    assert "no change" in run(*words).output
    (world.folder / "blue.png").unlink()
    world.picture("green.png", (0, 255, 0))
    assert "(1 added, 1 deleted)" in run(*words).output


def test_a_bad_file_is_reported_once_and_before_the_result(world: Any, run: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "255 0 0")
    for n in range(7):
        world.write(f"{'long name ' * 9}{n}.png", "no image")
    made = run("index", "--run", world.run, "--data", world.folder, "--out", tmp_path / "ix", "-q")
    reported = [line for line in made.output.splitlines() if line.startswith("skipped: ")]
    assert len(reported) == 6
    assert reported[-1] == "skipped: 2 more"
    assert all("cannot be read" in line for line in reported[:5])
    assert made.output.index("skipped") < made.output.index("1 image and 1 text")


def test_the_terminal_shows_the_scores_of_the_page_and_marks_weak_ones(world: Any, run: Any, tmp_path: Path) -> None:
    world.many(40)
    index(world, run, tmp_path / "ix")
    opened = Index.open(tmp_path / "ix", world.encoders)
    page = (
        TestClient(make_app(opened), base_url="http://127.0.0.1")
        .get("/api/search", params={"q": "200 30 90", "k": 10})
        .json()["results"]
    )
    assert any(result["weak"] for result in page)
    assert any(round(result["score"], 3) != round(result["cosine"], 3) for result in page)
    rows = [line.split() for line in run("search", tmp_path / "ix", "200 30 90").stdout.splitlines()]
    scores = [float(row[1]) for row in rows if len(row) > 2 and row[2] in {"image", "text"}]
    assert scores == pytest.approx([result["score"] for result in page], abs=0.0006)
    weak = next(n for n, row in enumerate(rows) if row[:1] == ["weak"])
    shown = [row for row in rows[:weak] if len(row) > 2 and row[2] in {"image", "text"}]
    assert len(shown) == sum(not result["weak"] for result in page)


def test_search_says_how_photos_are_found_if_all_results_are_weak(
    world: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.picture("red.png", (255, 0, 0), "255 0 0")
    index(world, run, tmp_path / "ix")

    def said(limit: float, *options: str) -> str:
        monkeypatch.setattr("csaligner.search.weak.WeakLimits.limit", lambda *_: limit)
        return str(run("search", tmp_path / "ix", "255 0 0", *options).output)

    assert "people" not in said(2.0)
    made = Index.open(tmp_path / "ix", world.encoders)
    write_manifest(made.path, replace(made.manifest, photos=True))
    assert "people" in said(2.0)
    assert "people" not in said(-2.0)
    assert "people" not in said(2.0, "--json")


def test_words_without_quotes_are_explained(world: Any, run: Any, tmp_path: Path) -> None:
    found = csaligner("search", tmp_path, "red", "circle")
    assert found.returncode == 2
    assert "quotes" in found.stderr


def test_the_folder_of_a_quickstart_names_its_index(world: Any, run: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "250 0 0")
    index(world, run, tmp_path / "made" / "index")
    assert run("check-data", tmp_path / "made").exit_code == 0
    refused = run("index", "--run", world.run, "--data", world.folder, "--out", tmp_path / "made", "-q")
    assert str(tmp_path / "made" / "index") in str(refused.exception)
    damaged = next((tmp_path / "made" / "index" / "aligner").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert run("check-data", tmp_path / "made").exit_code == 1
