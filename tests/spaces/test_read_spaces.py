"""Spaces from files, tables, exported points and databases; and the command diagnose."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from csaligner.checks import InputError
from csaligner.spaces.columns import Keys
from csaligner.spaces.read import read_spaces
from csaligner.store.store import Store
from tests.support.commands import csaligner
from tests.support.features import make_store

X = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
Y = X[:40] + np.float32(0.5)
KINDS = ["eeg"] * 60 + ["image"] * 40
BOTH = np.concatenate([X, Y])


def table(**columns: Any) -> pa.Table:
    return pa.table({"kind": KINDS, "key": [*range(60), *range(40)], "vector": BOTH.tolist(), **columns})


def points(path: Path, how: str) -> Path:
    found: list[Any] = [
        {"id": n, "vector": row.tolist(), "payload": {"modality": kind}}
        for n, (row, kind) in enumerate(zip(BOTH, KINDS, strict=True))
    ]
    if how == "jsonl":
        path.write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    else:
        path.write_text(json.dumps({"result": {"points": found}}), encoding="utf-8")
    return path


def sources(folder: Path) -> dict[str, Path]:
    pq.write_table(table(), folder / "items.parquet")
    np.savez(folder / "points.npz", vectors=BOTH, kind=np.array(KINDS))
    import lancedb

    lancedb.connect(str(folder / "db")).create_table("items", table())
    found = {name: folder / name for name in ("items.parquet", "points.npz")}
    found |= {how: points(folder / f"points.{how}", how) for how in ("json", "jsonl")}
    return found | {"lance": folder / "db" / "items.lance", "database": folder / "db"}


def test_a_column_of_kinds_gives_named_spaces(tmp_path: Path) -> None:
    for name, source in sources(tmp_path).items():
        found = {space.name: space.rows.numpy() for space in read_spaces([source])}
        assert list(found) == ["eeg", "image"], name
        assert np.allclose(found["eeg"], X), name
        assert np.allclose(found["image"], Y), name
        assert [s.name for s in read_spaces([source], ["image", "eeg"])] == ["image", "eeg"]


def test_an_id_column_pairs(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "t.parquet")
    first, second = read_spaces([tmp_path / "t.parquet"], keys=Keys(ids="key"))
    assert first.ids == tuple(map(str, range(60)))
    assert second.ids == tuple(map(str, range(40)))


def test_named_vectors_of_a_point_are_pairs(tmp_path: Path) -> None:
    found = [{"id": n, "vector": {"old": X[n].tolist(), "new": Y[n].tolist()}} for n in range(40)]
    del found[3]["vector"]["new"]  # type: ignore[attr-defined]
    (tmp_path / "p.json").write_text(json.dumps(found), encoding="utf-8")
    old, new = read_spaces([tmp_path / "p.json"])
    assert (len(old.rows), len(new.rows)) == (40, 39)
    assert old.ids is not None
    assert new.ids is not None
    assert new.ids[3] == old.ids[4] == "4"


def test_base64_vectors_are_decoded(tmp_path: Path) -> None:
    words = [base64.b64encode(row.tobytes()).decode() for row in BOTH]
    pq.write_table(pa.table({"kind": KINDS, "embedding": words}), tmp_path / "t.parquet")
    first, _ = read_spaces([tmp_path / "t.parquet"])
    assert np.array_equal(first.rows.numpy(), X)


def test_files_give_their_names_unless_others_are_given(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    files = [tmp_path / "eeg.npy", tmp_path / "again" / "b.npy", tmp_path / "b.npy"]
    for file, rows in zip(files, (X, Y, Y), strict=True):
        np.save(file, rows)
    assert [s.name for s in read_spaces(files[:2])] == ["eeg", "b"]
    assert [s.name for s in read_spaces(files[1:])] == ["first", "second"]
    assert [s.name for s in read_spaces(files[:2], ["audio", "text"])] == ["audio", "text"]


def test_a_folder_of_arrays_gives_named_spaces_with_ids(tmp_path: Path) -> None:
    np.save(tmp_path / "eeg.npy", X)
    np.save(tmp_path / "image.npy", Y)
    (tmp_path / "image.txt").write_text("".join(f"{n}\n" for n in range(40)), encoding="utf-8")
    eeg, image = read_spaces([tmp_path])
    assert (eeg.name, image.name) == ("eeg", "image")
    assert eeg.ids is None
    assert image.ids == tuple(map(str, range(40)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"a": 1}', "no vectors"),
        ("a.json", "{", "not JSON"),
        ("a.txt", "1 2", "not known"),
        ("a.npz", "x", "cannot be read"),
        ("a.parquet", "x", "Parquet"),
    ],
)
def test_unreadable_sources(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_spaces([tmp_path / name])


def test_pickled_points_are_not_read(tmp_path: Path) -> None:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, VectorParams

    client = QdrantClient(path=str(tmp_path / "local"))
    client.create_collection("items", vectors_config=VectorParams(size=8, distance=Distance.COSINE))
    client.close()
    with pytest.raises(InputError, match="pickled"):
        read_spaces([tmp_path / "local"])


@pytest.mark.parametrize("names", [["EEG", "image"], ["eeg", "smell"], ["eeg"]])
def test_names_that_fit_in_part_are_refused(tmp_path: Path, names: list[str]) -> None:
    np.save(tmp_path / "eeg.npy", X)
    np.save(tmp_path / "image.npy", Y)
    for sources in ([tmp_path], [tmp_path / "eeg.npy"] * 3):
        with pytest.raises(InputError, match=r"names: .*give"):
            read_spaces(sources, names)
    assert [s.name for s in read_spaces([tmp_path], ["image", "eeg"])] == ["image", "eeg"]
    assert [s.name for s in read_spaces([tmp_path], ["brain", "photo"])] == ["brain", "photo"]


def test_one_space_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(InputError, match="second source"):
        read_spaces([tmp_path / "a.npy"])


def test_the_command_leads_to_a_mended_collection(tmp_path: Path) -> None:
    shifted = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)).numpy()
    np.save(tmp_path / "eeg.npy", shifted[:150])
    np.save(tmp_path / "image.npy", shifted[150:] + 1)
    files = (str(tmp_path / "eeg.npy"), str(tmp_path / "image.npy"))
    options = ("--names", "eeg,image", "--pairs", "none", "--html", str(tmp_path / "page.html"))
    done = csaligner("diagnose", *files, *options, "--json", "--shift", str(tmp_path / "shift.npz"))
    found = json.loads(done.stdout)
    assert found["verdict"] == "shift"
    assert found["command"].endswith("--shift shift.npz")
    assert "does not mend" not in done.stderr
    means = np.load(tmp_path / "shift.npz")
    np.save(tmp_path / "eeg.npy", shifted[:150] - means["eeg"])
    np.save(tmp_path / "image.npy", shifted[150:] + 1 - means["image"])
    assert json.loads(csaligner("diagnose", *files, *options, "--json").stdout)["verdict"] == "no_gap"
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "bias@10 of eeg queries" in page
    assert "http" not in page.partition("<main>")[2]


def test_saved_spaces_can_be_imported_and_trained(tmp_path: Path) -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    wide = (x @ torch.randn(16, 24, generator=torch.Generator().manual_seed(1))).numpy()
    found = [{"id": n, "vector": {"old": x[n].tolist(), "new": wide[n].tolist()}} for n in range(200)]
    (tmp_path / "p.json").write_text(json.dumps(found), encoding="utf-8")
    done = csaligner("diagnose", str(tmp_path / "p.json"), "--save", str(tmp_path / "vectors"))
    assert "train on your 200 pairs" in done.stdout
    assert "&& csaligner train" in done.stdout
    assert "--names old,new" in done.stdout
    done = csaligner("diagnose", str(tmp_path / "p.json"), "--shift", str(tmp_path / "shift.npz"))
    assert "does not mend" in done.stderr
    files = {name: str(tmp_path / "vectors" / f"{name}.npy") for name in ("old", "new")}
    out = str(tmp_path / "store")
    done = csaligner("import", "--image-features", files["old"], "--text-features", files["new"], "--out", out)
    assert done.returncode == 0
    run = ("--names", "old,new", "--epochs", "0", "--out", str(tmp_path / "run"))
    done = csaligner("train", "--train-data", out, *run)
    assert done.returncode == 0, done.stderr
    assert "new rows find their old" in done.stderr


def test_a_store_holds_two_spaces_that_pair(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 60)
    image, text = read_spaces([store])
    assert [image.name, text.name] == ["image", "text"]
    assert (len(image.rows), len(text.rows)) == (60, Store.open(store).n_captions)
    done = csaligner("diagnose", store, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pairs"] == 60
    assert found["command"].startswith(f"csaligner train --train-data {store}") or not found["command"]


def test_the_note_of_a_table_is_one_line_and_names_what_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    wide = X @ np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    np.save(tmp_path / "images.npy", X)
    np.save(tmp_path / "texts.npy", wide)
    done = csaligner("diagnose", tmp_path / "images.npy", tmp_path / "texts.npy")
    note = next(line for line in done.stdout.splitlines() if "held-out pairs, " in line and "to fit" in line)
    assert "points more than chance" in note
    assert note.endswith("bootstrap interval.")
    assert "the others" not in done.stdout
    np.save(tmp_path / "texts.npy", X + 1)
    done = csaligner("diagnose", tmp_path / "images.npy", tmp_path / "texts.npy")
    assert "more than the better of the others" in done.stdout
