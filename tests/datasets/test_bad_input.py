"""Damaged input: one-line errors, and the remaining items are processed."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from csaligner.checks import InputError
from csaligner.datasets import open_dataset
from csaligner.datasets.images.load import ImageError, load_image
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store, write_store
from csaligner.types import EncoderInfo, PairedFeatures

SETTINGS = ExtractSettings(shard_size=4, batch_size=2, workers=0, max_bad=0.5)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(stream, "PNG")
    return stream.getvalue()


def huge_png() -> bytes:
    """Return 60 bytes of a PNG header with 50,000 x 50,000 pixels (7.5 GB decoded)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def table(folder: Path, last: str, content: bytes | None = None) -> Path:
    """Write a table of three valid rows and `last`, with the given content of its image z.png."""
    for name in "abc":
        (folder / f"{name}.png").write_bytes(picture())
    if content is not None:
        (folder / "z.png").write_bytes(content)
    rows = [json.dumps({"image": f"{name}.png", "caption": f"a {name}"}) for name in "abc"]
    path = folder / "t.jsonl"
    path.write_text("\n".join([*rows, last]))
    return path


def zero_bytes(folder: Path) -> Path:
    return table(folder, '{"image": "z.png", "caption": "z"}', b"")


def too_large(folder: Path) -> Path:
    return table(folder, '{"image": "z.png", "caption": "z"}', huge_png())


def missing_field(folder: Path) -> Path:
    return table(folder, '{"image": "z.png"}')


def half_a_line(folder: Path) -> Path:
    return table(folder, '{"image": "z.p')


def caption_is_a_number(folder: Path) -> Path:
    return table(folder, '{"image": "z.png", "caption": 7}', picture())


def broken_member(folder: Path) -> Path:
    path = folder / "t.tar"
    with tarfile.open(path, "w") as file:
        for name in "abzc":
            for suffix, content in ((".png", picture()), (".txt", name.encode())):
                info = tarfile.TarInfo(name + suffix)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    with tarfile.open(path) as file:
        start = file.getmember("z.png").offset_data
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + b"x" * 20 + whole[start + 20 :])
    return path


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (zero_bytes, r"z\.png"),
        (too_large, r"z\.png.*50,000,000"),
        (missing_field, r"t\.jsonl.*line 4.*'caption'"),
        (half_a_line, r"t\.jsonl.*line 4.*JSON"),
        (caption_is_a_number, "captions.*1"),
        (broken_member, "t.tar#z.png@"),
    ],
)
def test_one_line_and_the_rest_is_done(
    tmp_path: Path, image_encoder: Any, text_encoder: Any, make: Callable[[Path], Path], wanted: str
) -> None:
    path = make(tmp_path)
    store = embed(open_dataset(str(path)), image_encoder, text_encoder, tmp_path / "store", SETTINGS)
    assert store.n_images == 3
    assert any(re.search(wanted, line) for line in store.notes), store.notes
    assert not any("\n" in line for line in store.notes)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "z.png"
    path.write_bytes(huge_png())

    def load(self: Image.Image) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ImageError, match="pixels"):
        load_image(path)


def store_of(path: Path, name: str = "some") -> Store:
    features = PairedFeatures(torch.eye(4, 5), torch.eye(4, 3), torch.arange(4), tuple("abcd"))
    infos = (EncoderInfo(name, "1", "image", 5, {}), EncoderInfo("text", "1", "text", 3, {}))
    return write_store(path, features, infos)


def cut_shard(store: Store) -> object:
    path = store.path / "img_emb/img_emb_0.npy"
    path.write_bytes(path.read_bytes()[:-1])
    return Store.open(store.path)


def no_manifest(store: Store) -> object:
    (store.path / "csaligner.json").unlink()
    return Store.open(store.path)


def two_encoders(store: Store) -> None:
    store.require(image=store_of(store.path.with_name("other"), "other").image_fingerprint)


@pytest.mark.parametrize(
    ("use", "wanted"),
    [
        (
            cut_shard,
            r"img_emb_0\.npy.*207.*208",
        ),
        (no_manifest, r"csaligner\.json.*`csaligner embed`"),
        (two_encoders, r"image features.*some \(\w+\).*\(\w+\)"),
    ],
)
def test_a_broken_store_is_one_line(tmp_path: Path, use: Callable[[Store], object], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted) as caught:
        use(store_of(tmp_path / "store"))
    assert "\n" not in str(caught.value)
