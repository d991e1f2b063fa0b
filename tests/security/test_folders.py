"""Recipes, run folders and indexes of strangers: nothing is read or written outside of the folders that were named."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from csaligner import cli
from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.encoders import open_encoder
from csaligner.encoders.folder import no_downloads
from csaligner.locks import only_writer
from csaligner.model import AlignedModel
from csaligner.recipes import load_recipe, table
from csaligner.search.build import build_index
from csaligner.search.index import Index
from csaligner.search.manifest import read_manifest, write_manifest
from csaligner.types import EncoderInfo
from tests.support.colours import World, make_world, save_aligner
from tests.support.commands import csaligner

RECIPE = {
    "name": "<script>alert(1)</script>",
    "source": "A paper",
    "image_encoder": "bundled:efficientnet-lite0",
    "text_encoder": "bundled:all-MiniLM-L6-v2",
    "train": {"data": "x"},
}


def recipe(folder: Path, name: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"tests": {name: {"data": "x"}}}), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a/../../../OUT", "..", ".hidden", "a/b", "", "a\\b", "a\nb", "x" * 101])
def test_a_recipe_names_no_folder_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="tests"):
        load_recipe(recipe(tmp_path, name))


def test_a_recipe_is_text_in_its_table(tmp_path: Path) -> None:
    found = table(load_recipe(recipe(tmp_path, "flickr30k")), {})
    assert "<script>" not in found
    assert "&lt;script&gt;" in found


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="link checkpoints"), only_writer(tmp_path / "run"):
        (tmp_path / "run" / "checkpoints" / "x").write_text("x")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with only_writer(tmp_path / "out"):
        (tmp_path / "out" / "x").write_text("x")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    pytest.importorskip("lancedb", reason="lancedb is not installed")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = make_world(tmp_path)
    made.many(3)
    return made


def build(world: World) -> Index:
    return build_index(str(world.folder), world.folder.parent / "ix", str(world.run), encoders=world.encoders)[0]


def client_of(index: Index) -> Any:
    pytest.importorskip("httpx", reason="httpx is not installed")
    from starlette.testclient import TestClient

    from csaligner.app.server import make_app

    return TestClient(make_app(index), base_url="http://127.0.0.1", raise_server_exceptions=False)


def statuses(index: Index) -> list[int]:
    client = client_of(index)
    return [client.get(f"/api/{route}", params={"id": "000"}).status_code for route in ("thumb", "original", "similar")]


def test_the_own_index_shows_its_images(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(world).path
    assert statuses(Index.open(path, world.encoders)) == [200, 200, 200]
    assert (world.folder.parent / "state" / "csaligner" / "index.key").stat().st_mode & 0o077 == 0
    os.rename(path, path.with_name("moved"))
    assert statuses(Index.open(path.with_name("moved"), world.encoders)) == [200, 200, 200]


def test_an_index_from_elsewhere_shows_no_image_of_this_machine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(world).path
    monkeypatch.setenv("XDG_STATE_HOME", str(world.folder.parent / "another user"))
    assert statuses(Index.open(path, world.encoders)) == [404, 404, 404]
    assert client_of(Index.open(path, world.encoders)).get("/api/search", params={"q": "red"}).status_code == 200
    assert statuses(Index.open(path, world.encoders, trust=True)) == [200, 200, 200]


def test_a_mark_cannot_be_made_up(world: World) -> None:
    path = build(world).path
    manifest = read_manifest(path)
    for mark in ("", "0" * 64, manifest.mark[:-1]):
        write_manifest(path, replace(manifest, mark=mark))
        assert not Index.open(path, world.encoders).trusted


def test_indexing_all_of_the_data_again_makes_it_the_own(world: World) -> None:
    path = build(world).path
    write_manifest(path, replace(read_manifest(path), mark=""))  # as csaligner 0.3 wrote it
    assert build(world).trusted
    assert statuses(Index.open(path, world.encoders)) == [200, 200, 200]


def test_rows_of_other_data_keep_an_index_foreign(world: World) -> None:
    path = build(world).path
    write_manifest(path, replace(read_manifest(path), mark=""))
    (world.folder.parent / "more").mkdir()
    Image.new("RGB", (9, 9)).save(world.folder.parent / "more" / "m.png")
    index, _ = build_index(str(world.folder.parent / "more"), path, encoders=world.encoders)
    assert not Index.open(index.path, world.encoders).trusted


def test_without_a_home_folder_an_index_is_made_and_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.folder.parent / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(world.folder.parent / "file"))
    index = build(world)
    assert index.trusted
    assert not Index.open(index.path, world.encoders).trusted


def test_a_model_from_elsewhere_asks_before_it_downloads(tmp_path: Path) -> None:
    info = EncoderInfo("hf:someone/a-model-that-nobody-has", "1", "text", 4, {})
    aligner = Aligner.load(save_aligner(tmp_path / "aligner"))
    aligner.config = aligner.config.model_copy(update={"text_encoder": info.fingerprint})
    with pytest.raises(InputError, match="--trust"):
        AlignedModel(aligner, infos={"text": info}, downloads=False).encode_text(["red"])


@pytest.mark.parametrize("name", ["hf:someone/a-model-that-nobody-has", "open_clip:ViT-B-32/laion2b_s34b_b79k"])
def test_no_encoder_is_downloaded_without_consent(name: str) -> None:
    pytest.importorskip("open_clip" if name.startswith("open_clip") else "huggingface_hub")
    with no_downloads("the index x"), pytest.raises(InputError, match="--trust"):
        open_encoder(name, "text")


@pytest.mark.parametrize("content", [b"", b"\x00\xff nonsense" * 1000, b"12345\nhost\n"])
def test_a_lock_file_of_nonsense_is_a_lock_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".run.lock").write_bytes(content)
    with only_writer(tmp_path / "run"):
        pass


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_that_is_not_a_file_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine").write_text("mine")
    if kind == "folder":
        (tmp_path / ".run.lock").mkdir()
    else:
        (tmp_path / ".run.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="lock"), only_writer(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
        (RecursionError("maximum recursion depth exceeded"), "nested"),
    ],
)
def test_exhaustion_is_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    found = csaligner("check-data", "x")
    assert found.returncode == 1
    assert words in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
