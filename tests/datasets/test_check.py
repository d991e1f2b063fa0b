"""check_data: counts and problems found in a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from csaligner.checks import InputError
from csaligner.cli import app
from csaligner.datasets.check import check_data
from csaligner.datasets.images.source import Unusable
from csaligner.reporting.data_check import data_lines
from csaligner.types import Dataset, EncoderInfo, Item, Split

Listed = Callable[..., Dataset]
MakeItems = Callable[[int], list[Item]]


def in_split(items: Sequence[Item], split: Split) -> list[Item]:
    return [replace(item, split=split) for item in items]


class Words:
    """Counts words; can truncate after three."""

    info = EncoderInfo("words", "1", "text", 1, {})
    max_tokens = 3

    def prepare(self, item: str) -> str:
        return item

    def encode(self, prepared: Sequence[str]) -> Tensor:
        raise AssertionError("nothing is encoded")

    def token_count(self, text: str) -> int:
        return len(text.split())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_with_nothing_wrong(make_items: MakeItems, listed: Listed, workers: int) -> None:
    items = in_split(make_items(70), "train")
    report = check_data(listed(items), workers=workers)
    assert (report.images, report.captions) == (70, 139)
    assert report.captions_per_image == (1, 2, 3)
    assert report.splits == {"train": (70, 139)}
    assert report.problems == ()


def test_everything_that_can_be_wrong(tmp_path: Path, make_items: MakeItems, listed: Listed) -> None:
    items = in_split(make_items(10), "train")
    paths = [Path(str(item.image)) for item in items]
    items[1] = replace(items[1], split="test")
    paths[2].write_bytes(paths[1].read_bytes())  # a leak
    paths[4].write_bytes(paths[3].read_bytes())  # twice in train
    paths[5].unlink()
    paths[6].write_bytes(b"")
    items[7] = replace(items[7], image=Unusable("record 7", "a.json: record 7 has no 'image'"), captions=())
    items[8] = replace(items[8], captions=("", " "))
    items.append(replace(items[0], image=paths[9]))
    items[9] = replace(items[9], split="test", captions=(" Picture 0 caption 0",))
    report = check_data(listed(items), workers=0)
    assert report.images == 10
    assert report.broken_records.examples == ("a.json: record 7 has no 'image'",)
    assert [str(paths[5]) in example for example in report.missing.examples] == [True]
    assert (report.unreadable.count, str(paths[6]) in report.unreadable.examples[0]) == (1, True)
    assert report.ids_of_two_pictures.examples == ("id0",)
    assert any("id2" in e and "id1" in e for e in report.same_pictures.examples)
    assert any("id4" in e and "id3" in e for e in report.same_pictures.examples)
    assert set(report.leaked_pictures.examples) == {"id1 (test), id2 (train)", "id9 (test), id0 (train)"}
    assert report.leaked_captions.count == 1
    assert (report.without_caption, report.empty_captions) == (1, 2)
    assert report.problems == (
        "broken_records",
        "missing",
        "unreadable",
        "ids_of_two_pictures",
        "leaked_pictures",
    )
    lines = list(data_lines(report))
    assert any(line.startswith("! ") and ": 1 (" in line and str(paths[5]) in line for line in lines)
    assert all("\n" not in line for line in lines)


def test_captions_that_would_be_cut_off(make_items: MakeItems, listed: Listed, text_encoder: Any) -> None:
    items = make_items(2)
    items[0] = replace(items[0], captions=("one two three", "one two three four"))
    report = check_data(listed(items), Words(), workers=0)
    assert report.max_tokens == 3
    assert report.long_captions.count == 3
    assert report.long_captions.examples[0] == "one two three four"
    assert report.problems == ()
    with pytest.raises(InputError, match=r"fake-text.*tokens"):
        check_data(listed(items), text_encoder, workers=0)


def test_nothing_is_an_error(listed: Listed) -> None:
    with pytest.raises(InputError, match=r"^listed"):
        check_data(listed([]))


def test_on_the_command_line(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    for name in ("a", "b"):
        Image.new("RGB", (2, 2), "red" if name == "a" else "blue").save(tmp_path / f"{name}.png")
    table.write_text("pic,text\na.png,one\nb.png,two\nb.png,zwei\n")
    words = ["check-data", str(table), "--csv-img-key", "pic", "--csv-caption-key", "text", "--workers", "0", "-q"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "t.csv: 2 images, 3 captions" in done.output
    (tmp_path / "b.png").unlink()
    done = CliRunner().invoke(app, [*words, "--json"])
    value = json.loads(done.stdout)
    assert (done.exit_code, value["missing"]["count"], value["problems"]) == (1, 1, ["missing"])
    assert value["captions_per_image"] == [1, 1.5, 2]
