"""Split rule: frozen examples, which must not change."""

from __future__ import annotations

from pathlib import Path

from csaligner.datasets.near_duplicates import merge_groups, near_duplicates
from csaligner.datasets.split import item_split, split_of
from csaligner.types import Item, Split

FROZEN = {
    "": "train",
    "a": "train",
    "b": "train",
    "c": "val",
    "openmoji/1F600": "train",
    "openmoji/1F9D1": "test",
    "tuxpaint/animals/dog": "train",
    "openclipart/animals/bat_orlando_karam_": "train",
    "übung 🎈": "train",
    "COCO_val2014_000000000042": "test",
    "1": "train",
    "2": "train",
    "3": "train",
    "group 7": "train",
    "group 13": "val",
}


def test_frozen_examples() -> None:
    assert {group: split_of(group) for group in FROZEN} == FROZEN


def test_shares_are_80_5_15() -> None:
    found = [split_of(f"group {i}") for i in range(20_000)]
    shares = {name: found.count(name) / len(found) for name in ("train", "val", "test")}
    assert abs(shares["train"] - 0.80) < 0.01
    assert abs(shares["val"] - 0.05) < 0.006
    assert abs(shares["test"] - 0.15) < 0.01


def test_a_fixed_split_goes_before_the_hash() -> None:
    item = Item("a", Path("a.png"), ("x",), group="a")
    assert split_of("a") == item_split(item)
    other: Split = "val" if split_of("a") != "val" else "test"
    assert item_split(Item("a", Path("a.png"), ("x",), group="a", split=other)) == other


def test_near_duplicates_share_a_split_and_none_enters_the_test_set() -> None:
    names = [f"g{i}" for i in range(60)]
    of = {split: [n for n in names if split_of(n) == split] for split in ("train", "val", "test")}
    (a, *_), (b, *_), (c, d, e, *_) = of["train"], of["val"], of["test"]
    items = [Item(f"x/{n}", Path(n), ("",), n) for n in names]
    sets = [[f"x/{c}", f"x/{b}"], [f"x/{b}", f"x/{a}"], [f"x/{d}", f"x/{e}"], ["x/unknown", f"x/{names[-1]}"]]
    merged = {item.image_id: item.group for item in merge_groups(items, sets)}
    assert merged[f"x/{a}"] == merged[f"x/{b}"] == merged[f"x/{c}"] == a
    assert split_of(merged[f"x/{d}"]) == split_of(merged[f"x/{e}"]) == "test"
    assert merged[f"x/{d}"] == merged[f"x/{e}"]
    assert merged[f"x/{names[-1]}"] == names[-1]


def test_the_lists_of_near_duplicates_name_each_image_once() -> None:
    listed = [name for names in near_duplicates() for name in names]
    assert len(listed) == len(set(listed)) > 500
    assert all(len(names) > 1 for names in near_duplicates())
