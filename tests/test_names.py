"""Names of the two spaces in the library, in errors, tables and pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csaligner import CSAligner, InputError
from csaligner.names import Names
from tests.support.commands import csaligner

NAMES = Names("eeg", "image")
RNG = np.random.default_rng(0)
SHARED = RNG.normal(size=(80, 6))
EEG, IMAGE = SHARED @ RNG.normal(size=(6, 12)), SHARED @ RNG.normal(size=(6, 10))


def test_metrics_have_the_names() -> None:
    assert NAMES.metric("text_to_image_recall@1") == "image_to_eeg_recall@1"
    assert NAMES.metric("mixed_ndcg@10/image_query") == "mixed_ndcg@10/eeg_query"
    assert NAMES.metric("gap/centroid") == "gap/centroid"
    assert Names("text", "image").metric("image_to_text_recall@1") == "text_to_image_recall@1"


def test_sentences_have_the_names() -> None:
    assert (
        NAMES.fill("an {image}, {captions}, {Texts}, {I}\u2192{T}") == "an eeg, image rows, Image rows, eeg\u2192image"
    )
    assert NAMES.counts(5, 7) == "5 eeg rows, 7 image rows"
    assert Names().fill("{Images} and {texts} of a {caption}") == "Images and texts of a caption"
    assert Names().counts(1, 7) == "1 image, 7 captions"


@pytest.mark.parametrize("names", [("a", "a"), ("a b", "c"), ("", "c"), ("<b>", "c")])
def test_other_names_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(InputError, match="names"):
        CSAligner(names=names)


def test_the_estimator_uses_the_names(tmp_path: Path) -> None:
    aligner = CSAligner(names=("eeg", "image"), epochs=0).fit(EEG, IMAGE)
    assert np.array_equal(aligner.transform("eeg", EEG), aligner.transform_image(EEG))
    assert np.array_equal(aligner.transform("image", IMAGE), aligner.transform_text(IMAGE))
    found = aligner.evaluate(EEG, IMAGE)
    assert (
        found["eeg_to_image_recall@1"]
        == CSAligner(epochs=0).fit(EEG, IMAGE).evaluate(EEG, IMAGE)["image_to_text_recall@1"]
    )
    assert not [key for key in found if "text" in key]
    with pytest.raises(InputError, match="eeg_features"):
        aligner.transform("eeg", IMAGE)
    with pytest.raises(InputError, match="audio"):
        aligner.transform("audio", EEG)
    with pytest.raises(InputError, match="eeg_features has 80 rows and image_features 79"):
        aligner.fit(EEG, IMAGE[:79])
    with pytest.raises(InputError, match="eeg_features: got 1 eeg"):
        aligner.fit(EEG[:1], IMAGE[:1])
    with pytest.raises(InputError, match="for 80 eeg rows"):
        aligner.fit(EEG, IMAGE, range(79), text_image_ids=range(80))
    aligner.save(tmp_path / "aligner")
    loaded = CSAligner.load(tmp_path / "aligner")
    assert np.array_equal(loaded.transform("eeg", EEG), aligner.transform("eeg", EEG))


def test_without_names_nothing_changes(tmp_path: Path) -> None:
    CSAligner(epochs=0).fit(EEG, IMAGE).save(tmp_path / "aligner")
    assert '"names"' not in (tmp_path / "aligner" / "config.json").read_text(encoding="utf-8")


def test_tables_and_the_report_of_a_run_have_the_names(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", EEG)
    np.save(tmp_path / "b.npy", IMAGE)
    files = ("--image-features", tmp_path / "a.npy", "--text-features", tmp_path / "b.npy")
    assert csaligner("import", *files, "--out", tmp_path / "image-data").returncode == 0
    run = tmp_path / "run"
    done = csaligner(
        "train", "--train-data", tmp_path / "image-data", "--out", run, "epochs=0", "names=[eeg,image]", "-q"
    )
    again = csaligner("eval", "--run", run)
    for table in (done.stdout, again.stdout):
        assert "eeg" in table
        assert "T\u2192I" not in table
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "eeg and its own image" in page
    assert "image and its own caption" not in page
    assert "eeg query: one of its image rows is ranked first" in page
