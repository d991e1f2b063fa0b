"""Caption files beside the images of a folder, in the forms that people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csaligner.checks import InputError
from csaligner.datasets import open_dataset
from csaligner.datasets.caption_files import table_columns
from csaligner.datasets.documents import find_entries
from csaligner.types import notes_of

NAMES = ("a.jpg", "b.jpg", "c.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in NAMES:
        picture(folder / name)
    return folder


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), "red").save(path)
    return path


def read(folder: Path) -> tuple[dict[str, tuple[str, ...]], str]:
    """The captions by image id, and all notes."""
    dataset = open_dataset(str(folder))
    return {item.image_id: item.captions for item in dataset.items()}, "\n".join(notes_of(dataset))


def coco(folder: Path) -> str:
    images = [{"id": n, "file_name": name} for n, name in enumerate(NAMES[:2])]
    annotations = [{"image_id": n, "caption": f"caption of {name}"} for n, name in enumerate(NAMES[:2])]
    return json.dumps({"images": images, "annotations": annotations})


def karpathy(folder: Path) -> str:
    captions = [{"raw": f"caption of {name}"} for name in NAMES]
    entries = [
        {"filename": name, "split": "test", "sentences": [caption]}
        for name, caption in zip(NAMES[:2], captions, strict=False)
    ]
    return json.dumps({"images": entries})


LINES = "".join(f'{{"file_name": "{name}", "text": "caption of {name}"}}\n' for name in NAMES[:2])
FORMS: dict[str, tuple[str, Any]] = {
    "csv": ("captions.csv", "image,caption\na.jpg,caption of a.jpg\nb.jpg,caption of b.jpg\n"),
    "columns of other names": (
        "captions.csv",
        "nr;photo;what it shows\n1;a.jpg;caption of a.jpg\n2;b.jpg;caption of b.jpg\n",
    ),
    "tsv": ("captions.tsv", "filename\ttitle\na.jpg\tcaption of a.jpg\nb.jpg\tcaption of b.jpg\n"),
    "jsonl": ("captions.jsonl", LINES),
    "imagefolder": ("metadata.jsonl", LINES),
    "metadata.csv": ("metadata.csv", "file_name,text\na.jpg,caption of a.jpg\nb.jpg,caption of b.jpg\n"),
    "kaggle": ("captions.txt", "image,caption\na.jpg,caption of a.jpg\nb.jpg,caption of b.jpg\n"),
    "bars": (
        "results.csv",
        "image_name| comment_number| comment\na.jpg| 0| caption of a.jpg\nb.jpg| 0| caption of b.jpg\n",
    ),
    "flickr": ("captions.txt", "a.jpg#0\tcaption of a.jpg\nb.jpg#0\tcaption of b.jpg\n"),
    "token": ("results_20130124.token", "a.jpg#0\tcaption of a.jpg\nb.jpg#0\tcaption of b.jpg\n"),
    "coco": ("captions_val.json", coco),
    "karpathy": ("dataset_mine.json", karpathy),
    "stems": ("captions.csv", "id,caption\na,caption of a.jpg\nb,caption of b.jpg\n"),
    "any name": ("spring.csv", "image,caption\na.jpg,caption of a.jpg\nb.jpg,caption of b.jpg\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_captions_are_found_and_the_rest_of_the_images_stay(form: str, photos: Path) -> None:
    name, content = FORMS[form]
    (photos / name).write_text(content if isinstance(content, str) else content(photos), encoding="utf-8")
    captions, notes = read(photos)
    assert captions == {"a": ("caption of a.jpg",), "b": ("caption of b.jpg",), "c": ()}
    assert name in notes.splitlines()[0]
    assert "2 of 3" in notes.splitlines()[0]
    entries = find_entries(str(photos)).entries
    assert sum(entry.modality == "image" for entry in entries) == 3
    assert [entry.owner for entry in entries if entry.modality == "text"] == ["a", "b"]


def test_parquet_without_images_in_it(photos: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"file_name": ["a.jpg"], "text": ["caption"]}), photos / "metadata.parquet")
    assert read(photos)[0]["a"] == ("caption",)


def test_images_in_a_subfolder_and_several_captions(tmp_path: Path) -> None:
    for name in NAMES:
        picture(tmp_path / "set/Images" / name)
    (tmp_path / "set/captions.txt").write_text("image,caption\na.jpg,one\na.jpg,two\nImages/b.jpg,three\n")
    assert read(tmp_path / "set")[0] == {"Images/a": ("one", "two"), "Images/b": ("three",), "Images/c": ()}


def test_the_first_file_is_read_and_the_others_are_named(photos: Path) -> None:
    (photos / "captions.csv").write_text("image,caption\nother.jpg,x\n")
    (photos / "metadata.csv").write_text("file_name,text\na.jpg,read\ngone.jpg,lost\n")
    (photos / "dataset_x.json").write_text("{}")
    (photos / "b.txt").write_text("from the text file\n")
    captions, notes = read(photos)
    assert captions == {"a": ("read",), "b": ("from the text file",), "c": ()}
    assert "gone.jpg" in notes
    reasons = {line.split(": ")[1]: line for line in notes.splitlines() if line.startswith("not read")}
    assert set(reasons) == {"captions.csv", "dataset_x.json"}
    assert "names an image" in reasons["captions.csv"]
    assert "metadata.csv" in reasons["dataset_x.json"]


def test_a_table_that_only_happens_to_name_images_does_not_replace_text_files(photos: Path) -> None:
    (photos / "export.csv").write_text("file,title\na.jpg,from the table\n")
    (photos / "a.txt").write_text("from the text file\n")
    captions, notes = read(photos)
    assert captions["a"] == ("from the text file",)
    assert "export.csv" in notes
    (photos / "a.txt").unlink()
    assert read(photos)[0]["a"] == ("from the table",)


def test_a_table_without_captions_or_without_a_header_says_so(photos: Path) -> None:
    (photos / "metadata.csv").write_text("SourceFile,Make\na.jpg,Canon\n")
    (photos / "captions.csv").write_text("a.jpg,a dog\nb.jpg,a cat\n")
    captions, notes = read(photos)
    assert set(captions.values()) == {()}
    assert "header" in notes
    assert "no column of captions" in notes


def test_a_text_file_of_captions_without_images_stays_a_document(photos: Path) -> None:
    (photos / "captions.txt").write_text("a poem about spring\n")
    found = find_entries(str(photos))
    assert [entry.id for entry in found.entries if entry.modality == "text"] == ["captions.txt#1"]
    assert any("captions.txt" in note for note in found.notes)


def test_files_of_single_images_are_not_caption_files(photos: Path) -> None:
    (photos / "a.json").write_text("{}")
    (photos / "b.jpg.metadata.json").write_text("{}")
    assert "not read" not in read(photos)[1]


def test_the_splits_of_the_caption_file_count(photos: Path) -> None:
    (photos / "dataset_mine.json").write_text(karpathy(photos))
    assert {item.split for item in open_dataset(str(photos)).items() if item.captions} == {"test"}


def test_columns_of_a_table(photos: Path) -> None:
    table = photos.parent / "t.csv"
    table.write_text("n,file,description\n1,a.jpg,x\n")
    found = table_columns(table, photos)
    assert (found.image, found.caption) == ("file", "description")
    with pytest.raises(InputError, match="'n', 'file', 'description'"):
        table_columns(table)
