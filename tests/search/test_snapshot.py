"""The snapshot of an index: the same answers without LanceDB, and never older than the tables."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from csaligner.search.build import add_features, build_index, delete, finish
from csaligner.search.index import Index
from csaligner.search.weak import FEATURES, nonsense_images, nonsense_texts

SEARCH = """
import sys
from importlib import resources
from pathlib import Path
import numpy as np
from csaligner.search.index import Index
from csaligner.search.weak import FEATURES, nonsense_images, nonsense_texts
index = Index.open(sys.argv[1])
index.search_features(index.space("aligned").vectors["text"].new_ones(int(sys.argv[2])), "text", 5)
index.row("0"), index.counts, index.bias, index.items.first_texts(3)
unwanted = ("lancedb", "transformers", "sklearn", "pandas", "pyarrow.compute")
print(sorted(name for name in unwanted if name in sys.modules))
"""


@pytest.fixture
def index(world: Any, tmp_path: Path) -> Index:
    world.many(60)
    return build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]


def test_a_search_imports_no_database(index: Index) -> None:
    dim = index.model.aligner.config.dim_text
    command = [sys.executable, "-c", SEARCH, str(index.path), str(dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_answers_are_those_of_the_tables(world: Any, index: Index) -> None:
    shutil.copytree(index.path, index.path.parent / "tables")
    shutil.rmtree(index.path.parent / "tables" / "snapshot")
    (index.path.parent / "tables" / "checksums.json").unlink()
    quick, slow = Index.open(index.path, world.encoders), Index.open(index.path.parent / "tables", world.encoders)
    assert quick.search("200 30 90", k=120) == slow.search("200 30 90", k=120)
    ids = [hit.id for hit in quick.search("1 2 3", k=120)]
    for name in (*ids, "", "no such item", "~"):
        assert quick.row(name) == slow.row(name)
    assert quick.items.owners() == slow.items.owners()
    assert quick.items.stamps() == slow.items.stamps()
    assert quick.items.version == slow.items.version
    assert quick.items.first_texts(7) == slow.items.first_texts(7)


def test_a_write_is_seen_at_once(world: Any, index: Index) -> None:
    opened = Index.open(index.path, world.encoders)
    features = torch.full((1, opened.model.aligner.config.dim_text), 0.5)
    add_features(opened, "text", ["new"], features, ["a new text"])
    for seen in (opened, Index.open(index.path, world.encoders)):  # before `finish` writes a snapshot
        assert seen.row("new") is not None
        assert "new" in {hit.id for hit in seen.search_features(features[0], "text", 121)}
    finish(opened, "exact")
    assert Index.open(index.path, world.encoders).row("new") is not None
    assert delete(opened, ["new"]) == 1
    assert Index.open(index.path, world.encoders).row("new") is None


def test_a_damaged_snapshot_is_not_needed(world: Any, index: Index) -> None:
    wanted = index.search("200 30 90", k=9)
    (index.path / "checksums.json").unlink()
    (index.path / "snapshot" / "image.npy").write_bytes(b"damaged")
    assert Index.open(index.path, world.encoders).search("200 30 90", k=9) == wanted


def test_many_queries_at_once(index: Index) -> None:
    queries = ["200 30 90", "1 2 3", "90 200 30"]
    assert index.search_many([], k=4) == []
    for query, hits in zip(queries, index.search_many(queries, k=4), strict=True):
        alone = index.search(query, k=4)
        assert [hit.id for hit in hits] == [hit.id for hit in alone]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-6)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_the_features_of_nonsense_in_the_package_are_those_of_the_encoders(modality: Any) -> None:
    from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER, open_encoder

    encoder = open_encoder(TEXT_ENCODER if modality == "text" else IMAGE_ENCODER)
    queries: list[Any] = list(nonsense_texts() if modality == "text" else nonsense_images())
    wanted = encoder.encode([encoder.prepare(query) for query in queries])
    with safe_open(Path(str(resources.files("csaligner"))) / FEATURES, "pt") as file:
        found = file.get_tensor(encoder.info.fingerprint)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
