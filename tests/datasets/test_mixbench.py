"""Reader of MixBench's two releases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from csaligner import InputError
from csaligner.datasets.mixbench import read_mixbench
from tests.support.mixbench import SETS, write_2025, write_2026


@pytest.mark.parametrize("write", [write_2025, write_2026])
def test_both_releases_hold_the_same_items(tmp_path: Path, write: object) -> None:
    write(tmp_path)  # type: ignore[operator]
    (found,) = read_mixbench(tmp_path)
    assert found.name == "MSCOCO"
    assert [(q.id, q.kind) for q in found.queries] == [("q1", "text"), ("q2", "text"), ("q3", "both")]
    assert [(c.id, c.kind) for c in found.corpus] == [("c1", "text"), ("c2", "image"), ("c3", "both"), ("c4", "text")]
    assert found.qrels == {"q1": {"c1": 1}, "q2": {"c2": 1}, "q3": {"c3": 2}}
    assert all(item.text == "" for item in found.corpus if item.kind == "image")


def test_the_judgements_of_2025_complete_the_tables_of_2026(tmp_path: Path) -> None:
    write_2026(tmp_path)
    (tmp_path / "MSCOCO" / "qrels" / "qrels.tsv").unlink()
    with pytest.raises(InputError, match="MixBench25"):
        read_mixbench(tmp_path)
    write_2025(tmp_path)
    (tmp_path / "MSCOCO" / "mixed_corpus.jsonl").write_text("not read: parquet comes first")
    assert len(read_mixbench(tmp_path)) == 1


def test_the_header_of_judgements_may_have_hyphens(tmp_path: Path) -> None:
    write_2025(tmp_path)
    path = tmp_path / "MSCOCO" / "qrels" / "qrels.tsv"
    before = read_mixbench(tmp_path)[0].qrels
    path.write_text(path.read_text().replace("query_id\tcorpus_id", "query-id\tcorpus-id"))
    assert "query-id" in path.read_text()
    assert read_mixbench(tmp_path)[0].qrels == before


def test_the_folder_of_one_set_is_read_alone(tmp_path: Path) -> None:
    for name in SETS:
        write_2025(tmp_path, name)
    assert [found.name for found in read_mixbench(tmp_path)] == sorted(SETS)
    assert [found.name for found in read_mixbench(tmp_path / "OVEN")] == ["OVEN"]


def test_what_cannot_be_measured_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_mixbench(tmp_path / "missing")
    with pytest.raises(InputError, match="has no set"):
        read_mixbench(tmp_path)
    write_2025(tmp_path)
    folder = tmp_path / "MSCOCO"
    (folder / "qrels" / "qrels.tsv").write_text("query_id\tcorpus_id\tscore\nq1\tc9\t1\n")
    with pytest.raises(InputError, match="c9"):
        read_mixbench(tmp_path)
    (folder / "qrels" / "qrels.tsv").write_text("query\titem\nq1\tc9\n")
    with pytest.raises(InputError, match="row 2"):
        read_mixbench(tmp_path)
    write_2025(tmp_path)
    (folder / "images" / "2.png").unlink()
    with pytest.raises(InputError, match=r"2\.png"):
        read_mixbench(tmp_path)


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"corpus_id": "c1", "text": "twice"}, "twice"),
        ({"corpus_id": "c9", "text": None, "image": None}, "neither"),
        ({"text": "no id"}, "has no id"),
        ({"corpus_id": "c9", "image": "../../../outside.png"}, "outside"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, object], word: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    write_2025(data)
    path = data / "MSCOCO" / "mixed_corpus.jsonl"
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=word):
        read_mixbench(data)
