"""CSAligner estimator on plain arrays and on CLIP features."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from csaligner import CSAligner
from csaligner.adapters.aligner import Aligner, encode
from csaligner.checks import CSAlignerError, InputError
from csaligner.config import TrainConfig
from csaligner.paired_features import pair_features
from csaligner.selection.start import choose_start
from tests.support.features import make_arrays

Array = NDArray[np.float32]
SHARED = Path(os.environ.get("CSALIGNER_SHARED", Path(__file__).parents[2] / "shared"))
CLIP = SHARED / "data" / "clip_coco_500.npy"


def pairs(n: int = 30, dims: tuple[int, int] = (7, 5), seed: int = 0) -> tuple[Array, Array]:
    return make_arrays(n, dims, seed=seed)


def test_fit_transform_save_load_score(tmp_path: Path) -> None:
    image, text = pairs()
    before = torch.get_rng_state()
    aligner = CSAligner(epochs=3).fit(image, text)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random state is not changed
    x, y = aligner.transform_image(image), aligner.transform_text(text)
    assert x.shape == y.shape == (30, 5)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([x, y]), axis=1), 1, atol=1e-6)
    assert aligner.score(image, text) > 5 / 30
    aligner.save(tmp_path / "model")
    np.testing.assert_array_equal(CSAligner.load(tmp_path / "model").transform_text(text), y)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.filterwarnings("ignore:.*rows are zero")
def test_rows_that_are_all_equal_are_refused(side: int, value: float) -> None:
    arrays = list(pairs())
    arrays[side] = np.full_like(arrays[side], value)
    with pytest.raises(InputError, match=f"{('image', 'text')[side]}_features: all 30 rows are equal"):
        CSAligner(epochs=1).fit(*arrays)


def test_warnings_point_to_the_line_of_the_caller() -> None:
    image, text = pairs()
    image[5] = 0
    aligner = CSAligner(epochs=0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        aligner.fit(image, text)
        aligner.fit_transform(image, text)
        aligner.refit(image, text)
        aligner.score(image, text)
        pair_features(image, text)
        aligner.fit(text, text, list(range(30)), text_image_ids=[0, *range(29)])
    assert [(Path(w.filename), str(w.message).count(" zero ")) for w in found] == [
        (Path(__file__), n) for n in (1,) * 5 + (0,)
    ]


def test_double_precision_arrays_are_as_good() -> None:
    image, text = pairs()
    single = CSAligner(epochs=2).fit(image, text).transform_text(text)
    double = CSAligner(epochs=2).fit(image.astype(np.float64), text.astype(np.float64)).transform_text(text)
    np.testing.assert_allclose(single, double, atol=1e-4)


def test_several_captions_by_id_in_both_forms() -> None:
    image, text = pairs()
    rows = np.repeat(np.arange(30), 2)
    captions = text[rows] + np.tile([[0.0], [0.01]], (30, 1)).astype(np.float32)
    by_row = CSAligner(epochs=2).fit(image[rows], captions, image_ids=rows)
    by_id = CSAligner(epochs=2).fit(image, captions, list(range(30)), text_image_ids=rows)
    np.testing.assert_array_equal(by_row.transform_image(image), by_id.transform_image(image))


def test_adapting_only_the_text_leaves_the_image_index_as_it_is() -> None:
    image, text = pairs()
    aligner = CSAligner(image_adapter="identity", epochs=3).fit(image, text)
    unit = image / np.linalg.norm(image, axis=1, keepdims=True)
    np.testing.assert_allclose(aligner.transform_image(image), unit, atol=1e-6)
    assert aligner.score(image, text) > 5 / 30


def test_what_cannot_be_used_is_named() -> None:
    image, text = pairs()
    with pytest.raises(CSAlignerError, match="fitted"):
        CSAligner().transform_image(image)
    aligner = CSAligner(epochs=1).fit(image, text)
    with pytest.raises(InputError, match=r"text_features.*7.*5"):
        aligner.transform_text(image)
    image[3, 1] = np.nan
    with pytest.raises(InputError, match=r"1 of 30.*NaN.*row 3"):
        aligner.fit(image, text)
    with pytest.raises(InputError, match="1 image"):
        CSAligner().fit(image[:1], text[:1])
    with pytest.raises(InputError, match="'epochs'"):
        CSAligner(epoch=3)


def test_the_hyper_parameters_of_the_paper_have_their_names() -> None:
    by_name = CSAligner(weight=2, bandwidth="median", logit_scale=20.0, epochs=3).config
    terms = {"info_nce": 1.0, "cauchy_schwarz": 2.0}
    written = {"terms": terms, "bandwidth": "median", "logit_scale": 20.0}
    assert by_name == CSAligner(objective=written, epochs=3).config
    assert CSAligner().config == CSAligner(weight=1.0, bandwidth=0.5, logit_scale=1 / 0.07, gate=True).config
    for wrong in ({"weight": -1}, {"bandwidth": "medain"}, {"logit_scale": 0}, {"epochs": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            CSAligner(**wrong)


def test_no_epochs_give_the_untrained_baseline() -> None:
    image, text = pairs()
    untrained = CSAligner(epochs=0).fit(image, text)
    choice = choose_start(pair_features(image, text), TrainConfig())
    start = Aligner.fit_start(pair_features(image, text), TrainConfig(), starts=choice.starts)
    np.testing.assert_array_equal(untrained.transform_text(text), encode(start.eval(), "text", torch.from_numpy(text)))
    trained = CSAligner(epochs=1, gate=False).fit(image, text)
    assert not np.array_equal(trained.transform_text(text), untrained.transform_text(text))


def test_one_vector_becomes_one_vector() -> None:
    image, text = pairs()
    aligner = CSAligner(epochs=1).fit(image, text)
    for transform, rows in ((aligner.transform_image, image), (aligner.transform_text, text)):
        assert transform(rows[3]).shape == (5,)
        np.testing.assert_allclose(transform(rows[3].tolist()), transform(rows)[3], atol=1e-6)
    with pytest.raises(InputError, match="text_features: got 7 dimensions"):
        aligner.transform_text(image[0])


def test_progress_is_shown_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    image, text = pairs()
    quiet = CSAligner(epochs=2, gate=False).fit(image, text)
    assert capsys.readouterr() == ("", "")  # no terminal
    loud = CSAligner(epochs=2, gate=False, verbose=True).fit(image, text)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err
    assert "info_nce" in shown.err
    assert loud.selection_ is not None
    assert loud.selection_.line in shown.err
    np.testing.assert_array_equal(quiet.transform_text(text), loud.transform_text(text))


def test_repr_says_how_it_was_made_and_what_it_was_fitted_to() -> None:
    aligner = CSAligner(weight=2, epochs=1, seed=3)
    assert repr(aligner) == "CSAligner(weight=2, epochs=1, seed=3)"
    assert "7" in repr(aligner.fit(*pairs()))


def test_it_is_an_estimator_of_scikit_learn() -> None:
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")
    image, text = pairs()
    aligner = CSAligner(weight=2, epochs=2, verbose=False, seed=3, image_adapter={"hidden": 8})
    copy = base.clone(aligner)
    assert copy.config == aligner.config
    assert copy.get_params() == aligner.get_params()
    assert copy.set_params(weight=0.5, epochs=1).config.objective.terms["cauchy_schwarz"] == 0.5
    assert aligner.get_params()["weight"] == 2
    scores = selection.cross_validate(aligner, image, text, cv=3)["test_score"]
    assert len(scores) == 3
    assert all(score > 1 / 10 for score in scores)
    search = selection.GridSearchCV(aligner, {"weight": [0.0, 1.0]}, cv=2).fit(image, text)
    assert search.best_params_["weight"] in (0.0, 1.0)
    with pytest.raises(InputError, match="epocs"):
        aligner.set_params(epocs=3)


def test_fit_transform_gives_both_sides() -> None:
    image, text = pairs()
    x, y = CSAligner(epochs=1).fit_transform(image, text)
    aligner = CSAligner(epochs=1).fit(image, text)
    np.testing.assert_array_equal(x, aligner.transform_image(image))
    np.testing.assert_array_equal(y, aligner.transform_text(text))


@pytest.mark.skipif(not CLIP.exists(), reason="clip_coco_500.npy is not here; set CSALIGNER_SHARED to its folder")
def test_default_settings_close_the_gap_of_real_clip_features() -> None:
    """One fold of the protocol in docs/results.md: 400 training pairs, 100 test pairs."""
    image, text = np.load(CLIP)
    test = np.random.RandomState(0).permutation(500)[0::5]
    train = np.setdiff1d(np.arange(500), test)
    found = CSAligner().fit(image[train], text[train]).evaluate(image[test], text[test])
    assert found["mean_recall@1"] >= 0.73
    assert found["gap/centroid"] <= 0.15
    assert found["gap/probe_accuracy"] <= 0.65
    assert found["mixed_image_recall@10"] >= 0.87


def test_a_fit_says_how_often_a_caption_finds_its_image(capsys: pytest.CaptureFixture[str]) -> None:
    image, text = make_arrays(210, (8, 6))
    CSAligner(epochs=1, verbose=True).fit(image, text)
    assert re.search(r"\d+ % .* first 10 of 70 held-out training images \(.*chance 14 %\)", capsys.readouterr().err)
    CSAligner(epochs=1, verbose=True).fit(image[:50], text[:50])  # too few for folds
    assert "first 10" not in capsys.readouterr().err
