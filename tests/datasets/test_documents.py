"""Images and texts found in folders and tables for an index."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from csaligner.checks import InputError
from csaligner.datasets.documents import EntrySettings, find_entries, split_passages


def ids(data: Path, settings: EntrySettings | None = None) -> list[str]:
    return [entry.id for entry in find_entries(str(data), settings).entries]


def test_a_folder_gives_pictures_captions_and_passages(world: Any, write: Any) -> None:
    world.picture("a/red.png", (255, 0, 0), "a red one\n\nrouge\n")
    write("notes.md", "# Title\n\nWords.")
    write("data.bin", "nothing to see")
    assert ids(world.folder) == ["a/red", "a/red#caption-1", "a/red#caption-2", "notes.md#1"]
    found = {entry.id: entry for entry in find_entries(str(world.folder)).entries}
    assert found["notes.md#1"].text == "# Title\nWords."
    assert found["a/red"].caption == "a red one"
    assert (found["a/red#caption-2"].text, found["a/red#caption-2"].owner) == ("rouge", "a/red")


def test_captions_can_stay_with_their_pictures(world: Any) -> None:
    world.picture("red.png", (255, 0, 0), "a red one")
    assert ids(world.folder, EntrySettings(captions=False)) == ["red"]


def test_what_is_hidden_or_an_index_is_left_out(world: Any, write: Any) -> None:
    world.picture("red.png", (255, 0, 0))
    world.picture(".hidden/blue.png", (0, 0, 255))
    write(".secret.txt", "x")
    world.picture("index/green.png", (0, 255, 0))
    write("index/index.json", "{}")
    (world.folder / "index/images.lance").mkdir()
    found = find_entries(str(world.folder))
    assert [entry.id for entry in found.entries] == ["red"]
    assert "1 hidden or system folder" in found.notes[0]
    assert "1 folder that holds an index" in found.notes[0]


def test_a_link_out_of_the_folder_is_left_out_and_told(world: Any, tmp_path: Path) -> None:
    world.picture("red.png", (255, 0, 0))
    outside = tmp_path / "outside.txt"
    outside.write_text("secret")
    os.symlink(outside, world.folder / "link.txt")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "more.txt").write_text("secret")
    os.symlink(tmp_path / "elsewhere", world.folder / "linked-folder")
    found = find_entries(str(world.folder))
    assert [entry.id for entry in found.entries] == ["red"]
    assert len(found.skipped) == 1
    assert "outside" in found.skipped[0]
    assert "linked-folder" in found.notes[0]


def test_a_link_inside_the_folder_is_followed(world: Any) -> None:
    world.picture("red.png", (255, 0, 0))
    os.symlink(world.folder / "red.png", world.folder / "same.png")
    found = {entry.id: entry.path for entry in find_entries(str(world.folder)).entries}
    assert found["same"] == found["red"] == world.folder / "red.png"


def test_text_that_is_not_utf8_is_read_and_reported(world: Any) -> None:
    world.picture("red.png", (255, 0, 0))
    (world.folder / "old.txt").write_bytes(b"caf\xe9")
    (world.folder / "no.txt").write_bytes(b"\xe9\0")
    found = find_entries(str(world.folder))
    assert [entry.text for entry in found.entries] == ["", "café"]
    assert "cp1252: 1" in found.notes[0]
    assert "no.txt" in found.skipped[0]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_hold_pictures_texts_or_both(world: Any, kind: str) -> None:
    world.picture("red.png", (255, 0, 0))
    rows = [{"image": "red.png", "caption": "red"}, {"image": "", "caption": "words, alone"}]
    path = world.folder / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        path.write_text(f'image{mark}caption\nred.png{mark}red\n{mark}"words, alone"\n')
    found = {entry.id: entry for entry in find_entries(str(path)).entries}
    assert sorted(found) == ["red.png", "red.png#caption-1", "row-2"]
    assert found["row-2"].text == "words, alone"
    assert found["red.png"].path == world.folder / "red.png"


def test_a_table_of_texts_alone_with_ids(write: Any) -> None:
    path = write("t.csv", "key,body\na,one\nb,two\n")
    assert ids(path, EntrySettings(text_key="body", id_key="key")) == ["a", "b"]


@pytest.mark.parametrize("climb", ["../outside.png", "/etc/hostname"])
def test_a_table_cannot_reach_out_of_its_folder(world: Any, write: Any, climb: str) -> None:
    path = write("t.csv", f"image,caption\n{climb},x\n,words\n")
    found = find_entries(str(path))
    assert [entry.id for entry in found.entries] == ["row-2"]
    assert "outside" in found.skipped[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("picture,words\na,b\n", "'image'.*'picture', 'words'"),
        ("image,caption\n,\n", "text"),
    ],
)
def test_tables_that_cannot_be_used(write: Any, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_entries(str(write("t.csv", text)))


def test_values_of_a_csv_are_the_text_that_they_are(write: Any) -> None:
    path = write("t.csv", "id,caption\n007,2020-01-02\n7,true\n")
    found = find_entries(str(path), EntrySettings(id_key="id")).entries
    assert [(entry.id, entry.text) for entry in found] == [("007", "2020-01-02"), ("7", "true")]


@pytest.mark.parametrize("name", ["folder", "texts", "coco"])
def test_a_folder_named_as_a_format_is_a_folder(
    world: Any, write: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write(f"{name}/notes.md", "Words.")
    monkeypatch.chdir(world.folder)
    assert ids(Path(name)) == ["notes.md#1"]


def test_rows_of_one_id_are_numbered(write: Any) -> None:
    path = write("t.csv", "id,caption\n7,one\n7,two\n8,three\n")
    found = find_entries(str(path), EntrySettings(id_key="id")).entries
    assert [(entry.id, entry.text) for entry in found] == [("7#1", "one"), ("7#2", "two"), ("8", "three")]


def test_a_bad_row_costs_itself(write: Any) -> None:
    found = find_entries(str(write("t.csv", "image,caption\n,a\n,b,c\n,d\n")))
    assert [(entry.id, entry.text) for entry in found.entries] == [("row-1", "a"), ("row-3", "d")]
    assert "line 3 has 3 cells" in found.skipped[0]


def test_nothing_there(world: Any) -> None:
    with pytest.raises(InputError, match="folder"):
        find_entries(str(world.folder / "no"))
    with pytest.raises(InputError, match="or text"):
        find_entries(str(world.folder))


def test_passages_keep_every_word_and_the_limit() -> None:
    text = "A first one. " * 30 + "\n\n" + "word " * 100 + "\n\n" + "x" * 250
    passages = split_passages(text, size=100)
    assert max(map(len, passages)) <= 100
    assert "".join("".join(passages).split()) == "".join(text.split())


def test_passages_are_cut_between_sentences() -> None:
    assert split_passages("One is here. Two is there.", size=16) == ["One is here.", "Two is there."]
    assert split_passages(" \n\n ") == []
