"""Matching rows of images and texts by id."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csaligner.checks import InputError
from csaligner.paired_features import join_features, pair_features

IMAGE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
TEXT = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [3.0, 0.0]])


def test_rows_pair_by_position_without_ids() -> None:
    found = pair_features(IMAGE, TEXT[:3])
    assert found.text_to_image.tolist() == [0, 1, 2]
    assert found.image_ids == ("0", "1", "2")


def test_rows_of_one_id_become_one_image() -> None:
    found = pair_features(IMAGE[[0, 1, 0]], TEXT[:3], ["a", "b", "a"])
    assert torch.equal(found.image, IMAGE[:2])
    assert found.text_to_image.tolist() == [0, 1, 0]
    assert found.image_ids == ("a", "b")


def test_captions_find_their_image_by_id() -> None:
    found = pair_features(IMAGE, TEXT, ["a", "b", "c"], ["c", "a", "b", "c"])
    assert found.text_to_image.tolist() == [2, 0, 1, 2]
    assert torch.equal(found.text, TEXT)


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, lambda ids: list(torch.tensor(ids))])
def test_ids_may_be_lists_arrays_or_tensors(make: type[list[int]]) -> None:
    found = pair_features(IMAGE, TEXT, make([7, 8, 9]), make([9, 7, 8, 9]))
    assert found.text_to_image.tolist() == [2, 0, 1, 2]
    assert found.image_ids == ("7", "8", "9")


def test_an_id_read_as_text_is_the_same_id() -> None:
    found = pair_features(IMAGE, TEXT, np.array([7, 8, 9]), ["9", "7", "8", "9"])
    assert found.text_to_image.tolist() == [2, 0, 1, 2]


def test_one_picture_encoded_twice_is_one_image_at_any_scale() -> None:
    for scale in (1e-6, 1.0, 1e6):
        picture = scale * torch.tensor([[3.0, 0.0, 4.0]])
        again = picture + scale * torch.tensor([[0.0, 1e-3, 0.0]])
        assert len(pair_features(torch.cat([picture, again]), TEXT[:2], ["a", "a"]).image) == 1
        with pytest.raises(InputError, match="rows 0 and 1"):
            pair_features(torch.cat([picture, picture + scale * 0.1]), TEXT[:2], ["a", "a"])


def test_images_without_a_caption_are_left_out_and_counted() -> None:
    with pytest.warns(UserWarning, match="1 image"):
        found = pair_features(IMAGE, TEXT, ["a", "b", "c"], ["c", "a", "a", "c"])
    assert torch.equal(found.image, IMAGE[[0, 2]])
    assert found.text_to_image.tolist() == [1, 0, 0, 1]
    assert found.image_ids == ("a", "c")


def test_dtypes_meet_at_the_wider_one_and_half_becomes_float32() -> None:
    assert pair_features(IMAGE.half(), TEXT[:3].bfloat16()).image.dtype == torch.float32
    mixed = pair_features(IMAGE, TEXT[:3].double())
    assert (mixed.image.dtype, mixed.text.dtype) == (torch.float64, torch.float64)
    assert not pair_features(IMAGE.clone().requires_grad_(), TEXT[:3]).image.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGE, TEXT), "image_features.*3.*text_features.*4"),
        ((IMAGE, TEXT[:3], ["a", "b"]), "image_ids.*2.*3"),
        ((IMAGE, TEXT[:3], ["a", "b", "a"]), "rows 0 and 2 share the id 'a'"),
        ((IMAGE, TEXT, None, ["a", "b", "c", "a"]), "text_image_ids requires image_ids"),
        ((IMAGE, TEXT, ["a", "b", "b"], ["a", "b", "b", "a"]), "'b'"),
        ((IMAGE, TEXT, ["a", "b", "c"], ["a", "b", "z", "c"]), "'z'.*image_ids"),
        ((IMAGE, TEXT, ["a", "b", "c"], ["a", "b", "c"]), "text_image_ids.*3.*4"),
        ((IMAGE, TEXT[:3], "abc"), "image_ids.*'abc'"),
        ((IMAGE, TEXT[:3], 5), "image_ids.*int"),
        ((IMAGE, TEXT[:3], ["a", None, "b"]), "image_ids.*None"),
        ((IMAGE, TEXT[:3], [1, "1", 2]), "rows 0 and 1 share the id '1'"),
        ((IMAGE * torch.nan, TEXT[:3]), "image_features: 3 of 3 rows contain NaN"),
    ],
)
def test_what_does_not_match_is_named_in_one_line(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pair_features(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_joined_features_keep_their_captions() -> None:
    one = pair_features(torch.eye(3), torch.eye(3)[[0, 1, 1, 2]], ["a", "b", "c"], ["a", "b", "b", "c"])
    two = pair_features(torch.ones(2, 3), torch.ones(2, 3), ["d", "e"])
    both = join_features(one, two)
    assert both.image_ids == ("a", "b", "c", "d", "e")
    assert both.text_to_image.tolist() == [0, 1, 1, 2, 3, 4]
    torch.testing.assert_close(both.text[4:], two.text)
    with pytest.raises(InputError, match="'a'"):
        join_features(one, one)
