"""CLIP and SigLIP by name in quickstart, index and search: tiny models in the format of the Hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from csaligner import encoders
from csaligner import quickstart as module
from csaligner.app.server import make_app
from csaligner.checks import InputError
from csaligner.encoders import encoder_pair
from csaligner.model import AlignedModel
from csaligner.search import Index
from tests.support.colours import World
from tests.support.commands import csaligner

pytest.importorskip("transformers")
Tiny = Callable[[str], Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the Hub that holds org/clip, and no network."""
    repository = tmp_path / "hub/models--org--clip"
    shutil.copytree(tiny_model("clip"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository


def photos(world: World, count: int, captions: bool) -> None:
    words = ("red", "green", "blue", "cat", "dog", "house", "big", "small")
    for n, colour in enumerate(np.random.default_rng(0).integers(1, 255, (count, 3)).tolist()):
        caption = f"a {words[n % 8]} {words[n // 8 % 8]}"
        world.picture(f"{n:03}.png", tuple(colour), caption if captions else "")


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_photos_without_captions_and_a_model_of_two_towers(
    family: str, world: World, tiny_model: Tiny, tmp_path: Path
) -> None:
    photos(world, 25, captions=False)
    for n in range(25):
        world.write(f"text-{n}.md", f"the cat of house {n}")
    out = tmp_path / "out"
    made = csaligner("quickstart", world.folder, "--encoder", tiny_model(family), "--out", out, "--no-serve", "-q")
    assert made.returncode == 0, made.stderr
    assert "calibrated" in made.stderr
    index = Index.open(out)
    assert index.manifest.image.id.startswith(f"hf:{tiny_model(family)}")
    assert index.manifest.image.dim == index.manifest.text.dim == index.manifest.dim
    assert index.calibration is not None
    hit = index.search(world.folder / "003.png", k=1, only="images")[0]
    assert (hit.id, round(hit.cosine, 3)) == ("003", 1.0)
    again = csaligner("quickstart", world.folder, "--out", out, "--no-serve", "-q")  # the encoders of the index
    assert again.returncode == 0, again.stderr
    assert "no change" in again.stderr
    page = TestClient(make_app(index), base_url="http://127.0.0.1").get("/api/search", params={"q": "a cat"}).json()
    assert {result["file"] for result in page["results"]} <= {path.name for path in world.folder.iterdir()}
    assert page["results"]


def test_with_captions_it_trains(
    world: World, tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENOUGH", 60)
    photos(world, 90, captions=True)
    rows = [f"{path.stem}.png,{path.read_text()}" for path in sorted(world.folder.glob("*.txt"))]
    for path in world.folder.glob("*.txt"):
        path.unlink()
    world.write("captions.csv", "\n".join(["image,caption", *rows]))
    made = csaligner(
        "quickstart", world.folder, "--encoder", tiny_model("clip"), "--out", tmp_path / "out", "--no-serve", "-q"
    )
    assert made.returncode == 0, made.stderr
    assert "captions.csv" in made.stderr
    assert "first 10" in made.stderr
    found = csaligner("search", tmp_path / "out", "a red cat", "--json")
    assert len(json.loads(found.stdout)) == 10
    client = TestClient(make_app(Index.open(tmp_path / "out")), base_url="http://127.0.0.1")
    assert client.get("/api/search", params={"q": "a red cat"}).json()["results"][0]["file"].endswith(".png")


def test_index_and_search_with_an_encoder(world: World, tiny_model: Tiny, tmp_path: Path, cache: Path) -> None:
    photos(world, 5, captions=True)
    made = csaligner("index", "--data", world.folder, "--encoder", "hf:org/clip", "--out", tmp_path / "ix", "-q")
    assert made.returncode == 0, made.stderr
    assert Index.open(tmp_path / "ix").manifest.run == "hf:org/clip"
    found = csaligner("search", tmp_path / "ix", "a red cat", "--encoder", "hf:org/clip", "--json")
    assert found.returncode == 0, found.stderr
    other = csaligner("search", tmp_path / "ix", "a cat", "--encoder", tiny_model("siglip"))
    assert (other.returncode, len(other.stderr.splitlines())) == (1, 1)
    other = csaligner("index", "--data", world.folder, "--encoder", tiny_model("siglip"), "--out", tmp_path / "ix")
    assert (other.returncode, len(other.stderr.splitlines())) == (1, 1)


def test_two_encoders_without_a_common_space(world: World, tiny_model: Tiny, tmp_path: Path) -> None:
    photos(world, 5, captions=True)
    pair = ("--image-encoder", f"hf:{tiny_model('dinov2')}", "--text-encoder", f"hf:{tiny_model('bert')}")
    made = csaligner("quickstart", world.folder, *pair, "--out", tmp_path / "out", "--no-serve", "-q")
    assert (made.returncode, "captioned images" in made.stderr.splitlines()[-1]) == (1, True)


def test_a_model_that_is_not_there_says_what_to_download(world: World, cache: Path, tmp_path: Path) -> None:
    photos(world, 2, captions=False)
    made = csaligner("quickstart", world.folder, "--encoder", "hf:org/other", "--out", tmp_path / "o", "--no-serve")
    assert made.returncode == 1
    (line,) = made.stderr.splitlines()[-1:]
    assert "hf download org/other" in line


def test_a_cached_model_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert encoders.open_encoder("hf:org/clip", "text").info.revision == COMMIT
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(InputError, match="download"):
        encoders.open_encoder("hf:org/clip", "text")


def test_names_of_a_pair(tiny_model: Tiny) -> None:
    assert encoder_pair() is None
    clip = str(tiny_model("clip"))
    assert encoder_pair(clip) == (f"hf:{clip}", f"hf:{clip}")
    assert encoder_pair(image="hf:a/b") == ("hf:a/b", encoders.TEXT_ENCODER)
    for bad in ({"encoder": clip, "text": clip}, {"encoder": str(tiny_model("bert"))}, {"encoder": "nothing"}):
        with pytest.raises(InputError, match="encoder"):
            encoder_pair(**bad)


def test_the_folder_of_a_model_is_a_model_to_index_with(
    tiny_model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_model("clip")
    monkeypatch.chdir(folder.parent)
    for name in (str(folder), folder.name, f"./{folder.name}"):
        assert AlignedModel.open(name).name.startswith("hf:")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="run"):
        AlignedModel.open(tmp_path)
