"""The sentence on held-out pairs."""

from __future__ import annotations

import pytest

from csaligner.evaluation.held_out import HeldOut


def test_the_sentence_has_size_others_and_chance() -> None:
    found = HeldOut(143, 0.68, {"untrained": 0.67})
    for words in ("68 %", "first 10 of 143 held-out images", "(untrained alignment 67 %, chance 7 %)"):
        assert words in found.line
    assert found.lines == (found.line,)


def test_the_sentence_names_what_was_measured() -> None:
    assert HeldOut(50, 0.9, {"trained": 0.8}, used="bundled").line.startswith("the bundled aligner: 90 %")
    assert "untrained" not in HeldOut(50, 0.9, {"trained": 0.8}, used="bundled").line


def test_the_sentence_says_which_images_were_searched() -> None:
    assert "143 test images" in HeldOut(143, 0.68, part="test").line


@pytest.mark.parametrize(("images", "warns"), [(29, True), (30, False)])
def test_few_images_are_a_warning(images: int, warns: bool) -> None:
    lines = HeldOut(images, 0.5).lines
    assert len(lines) == 1 + warns
    assert all(str(images) in line for line in lines)


def test_chance_with_fewer_than_ten_images() -> None:
    assert HeldOut(4, 1.0).chance == 1.0
