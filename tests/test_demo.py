"""demo, from images to report, on a small folder with the bundled encoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from csaligner.demo import demo

COLOURS = ("red", "green", "blue", "orange", "purple", "black", "pink", "brown")
SHAPES = ("circle", "square", "triangle", "cross", "line", "ring", "bar", "dots")


def draw(folder: Path) -> None:
    for colour in COLOURS:
        for number, shape in enumerate(SHAPES):
            image = Image.new("RGB", (64, 64), "white")
            pen = ImageDraw.Draw(image)
            if number % 2:
                pen.rectangle((8 + number, 8, 56, 20 + 4 * number), fill=colour)
            else:
                pen.ellipse((8, 8 + number, 30 + 3 * number, 56), fill=colour)
            image.save(folder / f"{colour}-{shape}.png")
            (folder / f"{colour}-{shape}.txt").write_text(f"a {colour} {shape}\n{shape} in {colour}\n")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pictures, out = tmp_path_factory.mktemp("shapes"), tmp_path_factory.mktemp("demo")
    draw(pictures)
    demo(out, str(pictures), 1, workers=0, console=Console(quiet=True), quiet=True)
    return pictures, out


@pytest.mark.parametrize("name", ["results.json", "results_few.json"])
def test_one_result_for_each_method_and_seed_with_names_of_the_conventions(name: str, done: tuple[Path, Path]) -> None:
    results = json.loads((done[1] / name).read_text())
    found = {(r["method"], r["seed"]) for r in results}
    trained = ("InfoNCE from random weights", "CS-Aligner from random weights", "InfoNCE", "CS-Aligner")
    methods = ("closed-form start", *trained, *(f"{method}, then centred" for method in trained))
    assert found == {(method, seed) for method in methods for seed in (0,)}
    for r in results:
        assert r["provenance"]["versions"]["torch"]
        low, high = r["intervals"]["text_to_image_recall@10"]
        assert 0 <= low <= r["text_to_image_recall@10"] <= high <= 1


def test_the_report_stands_alone_and_shows_queries_and_figures(done: tuple[Path, Path]) -> None:
    page = (done[1] / "report.html").read_text()
    findings = ("Contrastive training as in CLIP", "training pairs", "95 % interval")
    for piece in ("CS-Aligner", "InfoNCE", "<svg", "data:image", *findings):
        assert piece in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert (done[1] / "before_after.png").stat().st_size > 5000


def test_a_second_call_trains_and_embeds_nothing_again(done: tuple[Path, Path]) -> None:
    pictures, out = done
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    results = json.loads((out / "results.json").read_text())
    demo(out, str(pictures), 1, workers=0, console=Console(quiet=True), quiet=True)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")} == before
    again = json.loads((out / "results.json").read_text())
    assert [r["mean_recall@1"] for r in again] == [r["mean_recall@1"] for r in results]
