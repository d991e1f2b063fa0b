"""Files of csaligner 0.1.0 (tests/fixtures) stay readable; files of a later version say what to update."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from csaligner.checks import InputError
from csaligner.model import AlignedModel
from csaligner.pipeline import evaluate_run
from csaligner.search.index import Index
from csaligner.store.store import Store
from tests.support.colours import ColourImages, ColourTexts

OLD = Path(__file__).parent / "fixtures" / "0.1.0"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "old", symlinks=True)
    return tmp_path / "old"


def test_a_store_and_a_run_of_0_1(old: Path) -> None:
    store = Store.open(old / "store")
    assert store.counts == {"train": (22, 22), "val": (1, 1), "test": (1, 1)}
    assert AlignedModel.open(old / "run").dim == 4
    assert evaluate_run(old / "run", "train", store)


def test_an_index_of_0_1(old: Path) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed")
    index = Index.open(old / "index", (ColourImages(), ColourTexts()))
    assert [hit.id for hit in index.search("250 9 9", k=2)] == ["0.png", "0.png#caption-1"]


FILES: dict[str, tuple[str, Any]] = {"store": ("csaligner.json", Store.open), "index": ("index.json", Index.open)}
FILES |= {"run": ("checkpoints/latest/config.json", AlignedModel.open)}


@pytest.mark.parametrize("kind", FILES)
def test_a_later_format_asks_for_an_update(old: Path, kind: str) -> None:
    name, read = FILES[kind]
    value: dict[str, Any] = json.loads((old / kind / name).read_text(encoding="utf-8"))
    (old / kind / name).write_text(json.dumps(value | {"format_version": 99}), encoding="utf-8")
    with pytest.raises(InputError, match="update csaligner") as caught:
        read(old / kind)
    assert "delete" not in str(caught.value)
