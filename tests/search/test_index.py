"""Search results: exactness, calibration, approximate search and one-line errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from csaligner.checks import CSAlignerError, InputError
from csaligner.search.approximate import measured_recall
from csaligner.search.build import BuildSettings, add_features, build_index, finish
from csaligner.search.index import Index


@pytest.fixture
def index(world: Any, tmp_path: Path) -> Index:
    world.many(60)
    return build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]


def test_the_order_is_that_of_exact_cosines(world: Any, index: Index) -> None:
    query = np.array([200.0, 30, 90])
    hits = index.search("200 30 90", k=120, calibrated=False)
    assert len(hits) == 120
    assert len({hit.id for hit in hits}) == 120
    for hit in hits:
        words = hit.text or hit.caption
        colour = np.array([float(word) for word in words.split()])
        cosine = query @ colour / np.linalg.norm(query) / np.linalg.norm(colour)
        assert hit.score == hit.cosine == pytest.approx(cosine, abs=0.01)  # files round colours
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)


def test_calibration_keeps_the_order_inside_a_modality(index: Index) -> None:
    plain = index.search("200 30 90", k=120, calibrated=False)
    fair = index.search("200 30 90", k=120)
    for modality in ("image", "text"):
        assert [h.id for h in plain if h.modality == modality] == [h.id for h in fair if h.modality == modality]


def test_raw_vectors_show_the_gap_and_aligned_ones_do_not(index: Index) -> None:
    assert {hit.modality for hit in index.search("200 30 90", space="raw")} == {"text"}
    assert {hit.modality for hit in index.search("200 30 90")} == {"text", "image"}
    assert index.bias["raw"]["text"] == pytest.approx(1 - 59 / 119, abs=1e-6)
    assert abs(index.bias["aligned"]["text"]) < 0.05
    assert abs(index.bias["centred"]["image"]) < 0.2


def test_a_picture_asks_as_well_as_words(world: Any, index: Index, tmp_path: Path) -> None:
    picture = Image.new("RGB", (9, 9), (200, 30, 90))
    picture.save(tmp_path / "q.png")
    by_words = [hit.id for hit in index.search("200 30 90", k=60, only="images")]
    assert [hit.id for hit in index.search(picture, k=60, only="images")] == by_words
    assert [hit.id for hit in index.search(tmp_path / "q.png", k=60, only="images")] == by_words


def test_only_one_modality(index: Index) -> None:
    assert {hit.modality for hit in index.search("1 2 3", only="images", k=5)} == {"image"}
    assert {hit.modality for hit in index.search("1 2 3", only="texts", k=5)} == {"text"}


def test_a_vanished_file_is_shown_as_missing(world: Any, index: Index) -> None:
    first = index.search("200 30 90", only="images", k=1)[0]
    assert not first.missing
    Path(first.path).unlink()
    again = index.search("200 30 90", only="images", k=1)[0]
    assert (again.id, again.missing) == (first.id, True)


def test_an_encoder_that_does_not_match_is_refused(world: Any, index: Index) -> None:
    with pytest.raises(InputError, match="images"):
        Index.open(index.path, (type(world.images)(revision="2"), world.texts))


def test_an_aligner_that_was_exchanged_is_refused(world: Any, index: Index) -> None:
    weights = index.path / "aligner" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match="aligner"):
        Index.open(index.path, world.encoders)


@pytest.mark.parametrize(
    ("query", "words", "message"),
    [
        ("  ", {}, "^query"),
        ("x", {"k": 0}, "^k: .*0"),
        ("x", {"space": "alined"}, "'aligned'"),
        ("x", {"only": "image"}, "'images'"),
        ("x", {"approximate": True}, "approximate"),
        (Path("no.png"), {}, r"no\.png"),
    ],
)
def test_questions_that_cannot_be_answered(index: Index, query: Any, words: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index.search(query, **words)


def test_damaged_indexes_are_one_line(world: Any, index: Index, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"index\.json"):
        Index.open(tmp_path)
    (index.path / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index\.json"):
        Index.open(index.path)
    (index.path / "index.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(InputError, match=r"format.*99"):
        Index.open(index.path)


def test_an_index_without_its_table(world: Any, index: Index) -> None:
    shutil.rmtree(index.path / "texts.lance")
    with pytest.raises(InputError, match=r"texts\.lance") as error:
        Index.open(index.path, world.encoders)
    assert "\n" not in str(error.value)


def test_pictures_alone_have_one_space_and_no_bias(world: Any, tmp_path: Path) -> None:
    for n in range(3):
        world.picture(f"{n}.png", (n * 80, 10, 10))
    index, _ = build_index(str(world.folder), tmp_path / "p", str(world.run), encoders=world.encoders)
    assert index.spaces == ("aligned",)
    assert index.bias["aligned"] == {}
    assert index.search("160 10 10", k=1)[0].id == "2"
    with pytest.raises(InputError, match="space"):
        index.search("x", space="raw")


def test_approximate_answers_are_measured_against_exact_ones(world: Any, tmp_path: Path) -> None:
    world.many(2)
    settings = BuildSettings(approximate="exact")
    index, _ = build_index(
        str(world.folder), tmp_path / "a", str(world.run), encoders=world.encoders, settings=settings
    )
    colours = np.random.default_rng(1).random((300, 3))
    for modality, encoder, gap in (("image", "i", 3.0), ("text", "t", -3.0)):
        features = np.concatenate([colours, np.full((300, 1), gap)], axis=1)
        ids = [f"{encoder}{n}" for n in range(300)]

        add_features(index, modality, ids, torch.from_numpy(features).float())  # type: ignore[arg-type]
    finish(index, "ivf_sq")
    how = index.manifest.approximate
    assert how is not None
    assert how.recall >= 0.95
    assert measured_recall(index, how.nprobes, how.refine) == pytest.approx(how.recall, abs=1e-3)
    reopened = Index.open(index.path, world.encoders)
    exact = [hit.id for hit in reopened.search("90 200 30", approximate=False)]
    found = [hit.id for hit in reopened.search("90 200 30")]
    assert len(set(exact) & set(found)) >= 9


def test_vectors_have_unit_length(index: Index) -> None:
    vectors = index.space("aligned").vectors["image"]
    assert (vectors - normalize(vectors, dim=1)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["faiss", "ivf_sq"])
def test_approximate_search_of_many_items(world: Any, tmp_path: Path, kind: str) -> None:
    if kind == "faiss":
        pytest.importorskip("faiss")
    world.many(2)
    index, _ = build_index(str(world.folder), tmp_path / "a", str(world.run), encoders=world.encoders)
    features = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0))
    add_features(index, "text", [f"t{n}" for n in range(3000)], features)
    finish(index, kind)
    how = index.manifest.approximate
    assert how is not None
    assert how.kind == kind
    assert how.recall >= (0.99 if kind == "faiss" else 0.95)
    reopened = Index.open(index.path, world.encoders)
    exact = reopened.search("90 200 30", k=50, approximate=False)
    found = reopened.search("90 200 30", k=50)
    cosines = {hit.id: hit.cosine for hit in exact}
    assert len(cosines.keys() & {hit.id for hit in found}) >= 45
    assert all(hit.cosine == pytest.approx(cosines.get(hit.id, hit.cosine), abs=1e-5) for hit in found)
    assert [hit.id for hit in reopened.search_many(["90 200 30", "1 2 3"], k=50)[0]] == [hit.id for hit in found]
    add_features(reopened, "text", ["new"], features[:1])
    assert "new" in {hit.id for hit in reopened.search_features(features[0], "text", 5)}  # lists of earlier tables


def test_codes_that_do_not_fit_the_dimension_are_refused_in_one_line(world: Any, index: Index) -> None:
    with pytest.raises(CSAlignerError, match="ivf_rq") as error:  # wants multiples of 8
        finish(index, "ivf_rq")
    assert "\n" not in str(error.value)
