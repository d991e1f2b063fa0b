"""Building and updating an index: changes, deletions and interruptions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from csaligner.adapters.aligner import Aligner
from csaligner.app.pictures import thumbnail
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.datasets.documents import INDEX_FILE
from csaligner.integrations.embeddings import AlignedEmbeddings
from csaligner.model import AlignedModel
from csaligner.pipeline import train
from csaligner.search.build import (
    BuildReport,
    add_features,
    build_index,
    create_index,
    delete,
    finish,
    writing,
)
from csaligner.search.index import Index, SearchOptions
from csaligner.store.store import Store
from tests.support.commands import csaligner
from tests.support.features import make_arrays

ROOT = Path(__file__).parents[2]


def build(world: Any, out: Path, data: Path | None = None) -> tuple[Index, BuildReport]:
    return build_index(str(data or world.folder), out, str(world.run), encoders=world.encoders)


def numbers(report: BuildReport) -> tuple[int, int, int, int]:
    return report.added, report.updated, report.deleted, report.unchanged


def test_only_what_changed_is_embedded_again(world: Any, write: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "255 0 0")
    blue = world.picture("blue.png", (0, 0, 255))
    write("n.txt", "some words")
    index, report = build(world, tmp_path / "ix")
    assert numbers(report) == (4, 0, 0, 0)
    assert index.counts == {"image": 2, "text": 2}
    assert numbers(build(world, tmp_path / "ix")[1]) == (0, 0, 0, 4)
    assert (world.images.seen, world.texts.seen) == (2, 2)

    os.utime(blue, ns=(1, 1))  # new mtime, same bytes
    assert numbers(build(world, tmp_path / "ix")[1]) == (0, 0, 0, 4)
    assert world.images.seen == 2

    world.picture("blue.png", (0, 255, 0))
    write("n.txt", "other words")
    index, report = build(world, tmp_path / "ix")
    assert numbers(report) == (0, 2, 0, 2)
    assert (world.images.seen, world.texts.seen) == (3, 3)
    assert index.search("0 255 0", k=1, only="images")[0].id == "blue"

    blue.unlink()
    assert numbers(build(world, tmp_path / "ix")[1]) == (0, 0, 1, 3)


def test_moved_data_keeps_its_entries(world: Any, write: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "255 0 0")
    world.picture("blue.png", (0, 0, 255))
    write("n.txt", "some words")
    build(world, tmp_path / "ix")
    there: Path = world.folder.rename(tmp_path / "there")
    (there / "blue.png").unlink()
    shutil.copy(there / "red.png", there / "new.png")
    index, report = build(world, tmp_path / "ix", there)
    assert numbers(report) == (1, 0, 1, 3)
    assert world.images.seen == 3
    assert index.manifest.sources == (str(there),)
    assert index.row("red").path == str(there / "red.png")  # type: ignore[union-attr]
    assert numbers(build(world, tmp_path / "ix", there)[1]) == (0, 0, 0, 4)


def test_other_data_with_the_ids_of_data_that_is_gone_is_refused(world: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0))
    build(world, tmp_path / "ix")
    other = tmp_path / "other"
    shutil.move(world.folder, tmp_path / "away")
    world.folder.mkdir()
    world.picture("red.png", (0, 255, 0))
    shutil.move(world.folder, other)
    with pytest.raises(InputError, match="already in the index"):
        build(world, tmp_path / "ix", other)


def test_a_new_caption_is_shown_without_embedding_the_picture(world: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0), "first")
    build(world, tmp_path / "ix")
    (world.folder / "red.txt").write_text("second")
    index, _ = build(world, tmp_path / "ix")
    assert index.row("red").caption == "second"  # type: ignore[union-attr]
    assert world.images.seen == 1


def test_pictures_inside_a_parquet_table(world: Any, tmp_path: Path) -> None:
    red, blue = (world.picture(f"{colour}.png", colour).read_bytes() for colour in ((255, 0, 0), (0, 0, 255)))
    table = world.folder / "t.parquet"

    def write(*pictures: bytes | None) -> None:
        cells = [{"bytes": picture, "path": "(255, 0, 0).png"} for picture in pictures]
        pq.write_table(pa.table({"image": cells, "caption": ["255 0 0", "0 0 255", "none"]}), table)

    write(red, blue, None)
    index, report = build(world, tmp_path / "ix", table)
    assert numbers(report) == (5, 0, 0, 0)
    (skipped,) = report.skipped
    assert skipped.startswith(f"{table}#image[2]: ")  # the separate file is not used instead
    hit = index.search("0 0 255", k=1, only="images")[0]
    assert (hit.id, hit.path, hit.caption, hit.missing) == ("t/1", f"{table}#image[1]", "0 0 255", False)
    assert thumbnail(index.row("t/1"), 160)[:2] == b"\xff\xd8"  # type: ignore[arg-type]

    write(red, red, None)
    assert numbers(build(world, tmp_path / "ix", table)[1]) == (0, 1, 0, 4)
    assert world.images.seen == 3  # only that image
    table.unlink()
    assert index.search("255 0 0", k=1, only="images")[0].missing


def test_other_data_stays_and_its_ids_are_safe(world: Any, write: Any, tmp_path: Path) -> None:
    world.picture("a/red.png", (255, 0, 0))
    world.picture("b/blue.png", (0, 0, 255))
    build(world, tmp_path / "ix", world.folder / "a")
    index, report = build(world, tmp_path / "ix", world.folder / "b")
    assert numbers(report) == (1, 0, 0, 0)
    assert len(index) == 2
    world.picture("b/red.png", (1, 1, 1))
    with pytest.raises(InputError, match="'red'"):
        build(world, tmp_path / "ix", world.folder / "b")


def test_a_broken_picture_is_told_and_the_rest_is_there(world: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0))
    (world.folder / "bad.png").write_bytes(b"\x89PNG broken")
    index, report = build(world, tmp_path / "ix")
    assert len(index) == 1
    assert len(report.skipped) == 1
    assert "bad.png" in report.skipped[0]


def test_an_index_of_another_run_or_encoder_is_refused(world: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0))
    build(world, tmp_path / "ix")
    other, aligner = tmp_path / "other", Aligner.load(world.run)
    aligner.log_logit_scale.data += 1
    aligner.save(other)
    with pytest.raises(InputError, match="another run"):
        build_index(str(world.folder), tmp_path / "ix", str(other), encoders=world.encoders)
    stranger = type(world.images)(revision="2")
    with pytest.raises(InputError, match="encoder"):
        build_index(str(world.folder), tmp_path / "new", str(world.run), encoders=(stranger, world.texts))


def test_a_run_on_features_without_an_encoder_says_so(world: Any, tmp_path: Path) -> None:
    """For example a clip-retrieval folder: there is no encoder for items or queries."""
    for name in ("img_emb", "text_emb"):
        (tmp_path / "clip" / name).mkdir(parents=True)
        rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        np.save(tmp_path / "clip" / name / f"{name}_0.npy", rows)
    run = tmp_path / "trained"
    train(Store.open(tmp_path / "clip"), build_config(TrainConfig, {"epochs": 1}), run)
    world.picture("red.png", (255, 0, 0))
    message = r"precomputed:clip-retrieval.*cannot encode"
    with pytest.raises(InputError, match=message):
        build_index(str(world.folder), tmp_path / "ix", str(run))
    with pytest.raises(InputError, match=message):
        AlignedEmbeddings.open(run)
    shutil.rmtree(tmp_path / "clip")  # the run records its encoders
    with pytest.raises(InputError, match=message):
        AlignedEmbeddings.open(run)


def test_a_folder_with_something_else_is_not_touched(world: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0))
    out = tmp_path / "full"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="index"):
        build(world, out)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match=r"^run"):
        build_index(str(world.folder), tmp_path / "new")


def test_two_writers_at_once(world: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0))
    build(world, tmp_path / "ix")
    with writing(tmp_path / "ix"), pytest.raises(InputError, match="another process"):
        build(world, tmp_path / "ix")
    assert numbers(build(world, tmp_path / "ix")[1]) == (0, 0, 0, 1)


FIRST = """
import sys
sys.path.insert(0, {root!r})
from tests.support.colours import ColourImages, ColourTexts
from csaligner.search.build import build_index
from csaligner.search.lance_table import Items

create = Items.create

def slowly(*args, **words):
    print("creating", flush=True)
    sys.stdin.readline()
    return create(*args, **words)

Items.create = slowly
build_index({data!r}, {out!r}, {run!r}, encoders=(ColourImages(), ColourTexts()))
"""


def test_of_two_first_writers_the_second_is_refused_before_it_creates_anything(world: Any, tmp_path: Path) -> None:
    world.many(3)
    out = tmp_path / "ix"
    script = FIRST.format(root=str(ROOT), data=str(world.folder), out=str(out), run=str(world.run))
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "creating\n"
        with pytest.raises(InputError, match="another process"):
            build(world, out)
        assert not out.exists()
        first.communicate("go on\n")
    assert first.returncode == 0
    assert len({hit.id for hit in Index.open(out, world.encoders).search("1 2 3", k=100)}) == 6
    assert numbers(build(world, out)[1]) == (0, 0, 0, 6)


def test_delete_by_id(world: Any, tmp_path: Path) -> None:
    world.picture("it's red.png", (255, 0, 0), "255 0 0")
    world.picture("blue.png", (0, 0, 255))
    index, _ = build(world, tmp_path / "ix")
    assert delete(index, ["it's red", "unknown"]) == 1
    assert [hit.id for hit in index.search("255 0 0", only="images")] == ["blue"]
    assert len(Index.open(tmp_path / "ix", world.encoders)) == 2


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from tests.support.colours import ColourImages, ColourTexts
from csaligner.search import build
build.A_WRITE = {{"image": 4, "text": 4}}

class Deadly(ColourImages):
    def encode(self, prepared):
        if self.seen >= 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(prepared)

build.build_index({data!r}, {out!r}, {run!r}, encoders=(Deadly(), ColourTexts()))
"""


def test_a_killed_indexer_leaves_an_index_that_opens_and_goes_on(world: Any, tmp_path: Path) -> None:
    world.many(20)
    out = tmp_path / "ix"
    words = {"root": str(ROOT), "data": str(world.folder), "out": str(out), "run": str(world.run)}
    done = subprocess.run([sys.executable, "-c", KILLED.format(**words)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    half = Index.open(out, world.encoders)
    assert half.counts == {"image": 8, "text": 8}
    assert half.manifest.pending == str(world.folder)
    assert len(half.search("10 20 30", k=3)) == 3

    index, report = build(world, out)
    assert numbers(report) == (24, 0, 0, 16)
    assert world.images.seen == 12
    assert index.manifest.pending == ""
    whole, _ = build(world, tmp_path / "whole")
    for query in ("200 10 10", "3 200 100"):
        again, straight = index.search(query, k=40), whole.search(query, k=40)
        assert {hit.id: round(hit.score, 5) for hit in again} == {hit.id: round(hit.score, 5) for hit in straight}
    assert (out / INDEX_FILE).is_file()


def test_an_index_takes_a_dataset_and_its_ids(world: Any, tmp_path: Path) -> None:
    from csaligner.datasets.folder import Folder

    world.many(3)
    index, report = build_index(Folder(world.folder), tmp_path / "i", str(world.run), encoders=world.encoders)
    assert report.added == 6
    ids = {hit.id for hit in index.search("1 2 3", 10)}
    assert ids == {name for n in range(3) for name in (f"{n:03}", f"{n:03}#caption-1")}
    seen = world.images.seen
    _, report = build_index(Folder(world.folder), tmp_path / "i", encoders=world.encoders)
    assert (report.unchanged, world.images.seen) == (6, seen)


def test_images_inside_tars_and_saved_datasets_are_indexed_and_shown(world: Any, tmp_path: Path) -> None:
    from csaligner.app.pictures import thumbnail
    from tests.support.odd_files import tar

    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    red = world.picture("red.png", (255, 0, 0)).read_bytes()
    data = tar(tmp_path / "w.tar", [("a.png", red), ("a.txt", b"255 0 0")])
    secret = {"bytes": None, "path": str(world.folder / "red.png")}
    rows = {"image": [{"bytes": red, "path": None}, secret], "caption": ["255 0 0", "1 1 1"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    for path, added in ((data, 2), (tmp_path / "saved", 3)):  # a row with a path is not read
        out = tmp_path / f"{path.stem}-index"
        index, report = build_index(str(path), out, str(world.run), encoders=world.encoders)
        assert report.added == added
        (hit, *_) = index.search("255 0 0", 1, SearchOptions(only="images"))
        assert not hit.missing
        assert thumbnail(index.row(hit.id), 16)  # type: ignore[arg-type]
        seen = world.images.seen
        _, report = build_index(str(path), out, encoders=world.encoders)
        assert (report.unchanged, world.images.seen) == (added, seen)


def test_data_that_was_moved_is_not_embedded_again(world: Any, tmp_path: Path) -> None:
    world.many(3)
    build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)
    world.picture("new.png", (1, 2, 3), "1 2 3")
    (world.folder / "000.png").unlink()
    (world.folder / "000.txt").unlink()
    there = world.folder.rename(world.folder.with_name("there"))
    seen = world.images.seen
    index, report = build_index(str(there), tmp_path / "ix", encoders=world.encoders)
    assert (report.added, report.deleted, report.unchanged, world.images.seen - seen) == (2, 2, 4, 1)
    assert index.manifest.sources == (str(there),)
    assert not any(hit.missing for hit in index.search("1 2 3"))
    index, report = build_index(str(there), tmp_path / "ix", encoders=world.encoders)
    assert (report.added, report.deleted, report.unchanged) == (0, 0, 6)


def test_vectors_are_imported_trained_and_indexed(tmp_path: Path) -> None:
    image, text = make_arrays(210, (8, 6))
    for name, rows in (("x", image), ("y", text)):
        np.save(tmp_path / f"{name}.npy", rows)
    with pytest.raises(InputError, match="csaligner import"):
        build_index(str(tmp_path / "x.npy"), tmp_path / "ix", "bundled")
    files = ("--image-features", tmp_path / "x.npy", "--text-features", tmp_path / "y.npy")
    made = csaligner("import", *files, "--image-name", "mine", "--text-name", "yours", "--out", tmp_path / "st")
    assert made.returncode == 0, made.stderr
    made = csaligner("train", "--train-data", tmp_path / "st", "--out", tmp_path / "run", "epochs=1", "-q")
    assert made.returncode == 0, made.stderr
    create_index(tmp_path / "ix", AlignedModel.open(str(tmp_path / "run")))
    index = Index.open(tmp_path / "ix")
    ids = [f"{n}" for n in range(210)]
    for modality, rows in (("image", image), ("text", text)):
        add_features(index, modality, [f"{modality}-{i}" for i in ids], torch.from_numpy(rows).float())  # type: ignore[arg-type]
    finish(index, "exact")
    assert index.counts == {"image": 210, "text": 210}
    assert index.calibration is not None
    found = [index.search_features(torch.from_numpy(text[n]).float(), "text", k=10) for n in range(30)]
    assert sum(f"image-{n}" in {hit.id for hit in hits} for n, hits in enumerate(found)) > 10
