"""A folder of mixed files is embedded and indexed to the end, and the report accounts for every file."""

from __future__ import annotations

from pathlib import Path

import pytest

from csaligner.datasets import open_dataset
from csaligner.search.build import build_index
from csaligner.store.embed import ExtractSettings, embed
from tests.support.colours import ColourImages, ColourTexts, save_aligner

from .mixed import CAPTIONS, DOCUMENT, IGNORED, IMAGE, ODD, UNREADABLE, account_of_index, account_of_store, mixed

pytest.importorskip("resvg_py", reason="resvg is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")
SETTINGS = ExtractSettings(shard_size=64, batch_size=8, workers=0, max_bad=0.1)
NO_IMAGE = 1  # one unreadable file is a text


def test_every_file_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.inputs.mixed.ODD_SHARE", 0.2)
    made = mixed(tmp_path / "m", 200)
    assert made.total() == 200
    assert len(ODD) < 0.2 * 200  # every kind occurs
    images, texts = ColourImages(), ColourTexts()
    index, report = build_index(
        str(tmp_path / "m"), tmp_path / "i", str(save_aligner(tmp_path / "run")), encoders=(images, texts)
    )
    assert account_of_index(index, report) == made
    pairs = embed(open_dataset(str(tmp_path / "m")), images, texts, tmp_path / "pairs", SETTINGS)
    assert account_of_store(pairs).total() == made.total()
    assert account_of_store(pairs)[CAPTIONS] == made[CAPTIONS]
    alone = embed(open_dataset(str(tmp_path / "m")), images, None, tmp_path / "images", SETTINGS)
    found = account_of_store(alone)
    assert found[IMAGE] == made[IMAGE]
    assert found[UNREADABLE] == made[UNREADABLE] - NO_IMAGE
    assert found[IGNORED] == made[IGNORED] + made[DOCUMENT] + NO_IMAGE
