"""Stores of one modality, row access, and clip-retrieval folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from csaligner.checks import InputError
from csaligner.datasets.images.source import Unusable
from csaligner.datasets.split import split_of
from csaligner.store.clip_retrieval import open_clip_retrieval
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store
from csaligner.types import Dataset, Item

Listed = Callable[..., Dataset]
MakeItems = Callable[[int], list[Item]]
SMALL = ExtractSettings(shard_size=4, batch_size=3, workers=0)


@pytest.fixture
def both(tmp_path: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any) -> Store:
    return embed(listed(make_items(11)), image_encoder, text_encoder, tmp_path / "both", SMALL)


def test_rows_by_number_in_any_order(both: Store) -> None:
    everything = {side: both.rows(side, range(both.n_rows)) for side in both.sides}
    for side, all_rows in everything.items():
        files = sorted((both.path / ("img_emb" if side == "image" else "text_emb")).iterdir())
        assert np.array_equal(all_rows.numpy(), np.concatenate([np.load(file) for file in files]))
        wanted = torch.tensor([20, 0, 7, 7, 19])
        assert torch.equal(both.rows(side, wanted), all_rows[wanted])
        assert both.rows(side, []).shape == (0, all_rows.shape[1])
    for wrong in ([21], [-1], [[0]]):
        with pytest.raises(InputError, match=r"\b20\b"):
            both.rows("image", wrong)
    with pytest.raises(InputError, match=r"side.*'sound'"):
        both.rows("sound", [0])  # type: ignore[arg-type]


def test_pairing_is_what_features_are_made_of(both: Store) -> None:
    for split in (None, "train"):
        pairing, features = both.pairing(split), both.features(split)
        assert torch.equal(both.rows("image", pairing.image_rows), features.image)
        assert torch.equal(both.rows("text", pairing.text_rows), features.text)
        assert torch.equal(pairing.text_to_image, features.text_to_image)
    assert both.rows_of("image").tolist() == both.pairing().image_rows.tolist()
    assert both.rows_of("text").tolist() == list(range(21))


def test_scattered_rows_are_those_of_the_whole(both: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = both.features().text
    rows = [20, 3, 4, 5, 4, 0, 12, 11, 20]
    assert torch.equal(Store.open(both.path).rows("text", rows), wanted[rows])
    monkeypatch.delattr("os.preadv")  # Windows
    assert torch.equal(Store.open(both.path).rows("text", rows), wanted[rows])


def test_a_file_that_is_cut_while_it_is_open_is_named(both: Store) -> None:
    store = Store.open(both.path, verify=False)
    for path in (both.path / "text_emb").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"text_emb_\d\.npy"):
        store.rows("text", range(21))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_of_pictures_alone(
    tmp_path: Path,
    make_items: MakeItems,
    listed: Listed,
    image_encoder: Any,
    text_encoder: Any,
    both: Store,
    workers: int,
) -> None:
    items = [Item(i.image_id, i.image, (), i.group) for i in make_items(11)]
    settings = ExtractSettings(shard_size=4, batch_size=3, workers=workers)
    store = embed(listed(items), image_encoder, None, tmp_path / "images", settings)
    assert (store.n_images, store.n_captions, store.n_rows, store.sides) == (11, 0, 11, ("image",))
    assert torch.equal(store.rows("image", range(11)), both.features().image)
    assert sum(images for images, _ in store.counts.values()) == 11
    test = [i for i, item in enumerate(items) if split_of(item.group) == "test"]
    assert store.rows_of("image", "test").tolist() == test
    assert not (store.path / "text_emb").exists()
    assert store.image_fingerprint == both.image_fingerprint
    for ask in (lambda: store.text_fingerprint, store.features, lambda: store.rows("text", [0])):
        with pytest.raises(InputError, match="text features"):
            ask()
    with pytest.raises(InputError, match="text features"):
        store.require(text="0")


def test_a_store_of_captions_alone_reads_no_picture(
    tmp_path: Path, listed: Listed, make_items: MakeItems, text_encoder: Any, both: Store
) -> None:
    items = [Item(i.image_id, Unusable("x", "must not be read"), i.captions, i.group) for i in make_items(11)]
    store = embed(listed(items), None, text_encoder, tmp_path / "texts", SMALL)
    assert (store.n_images, store.n_captions, store.sides) == (0, 21, ("text",))
    assert torch.equal(store.rows("text", store.rows_of("text")), both.features().text)
    store.verify()
    with pytest.raises(InputError, match="image features"):
        store.pairing()
    with pytest.raises(InputError, match=r"image_encoder.*text_encoder"):
        embed(listed(items), None, None, tmp_path / "none", SMALL)
    with pytest.raises(InputError, match="store"):
        embed(listed(items[1:]), None, text_encoder, store.path, SMALL)


def test_the_sha256_is_checked_when_a_file_is_first_read(both: Store) -> None:
    path = both.path / "text_emb/text_emb_1.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    store = Store.open(both.path)
    store.rows("text", [0])  # another shard
    with pytest.raises(InputError, match=r"text_emb_1\.npy.*SHA-256"):
        store.features()
    assert Store.open(both.path, verify=False).features().text.shape == (21, 8)


def test_a_shard_that_is_cut_short_is_told_so(both: Store) -> None:
    path = both.path / "img_emb/img_emb_2.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"img_emb_2\.npy.*190.*200"):
        Store.open(both.path)


def clip_folder(
    tmp_path: Path, numbers: tuple[int, ...] = (0, 2, 10), text: bool = True, metadata: bool = True
) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "clip"
    for number in numbers:
        for name in ("img_emb", *(("text_emb",) if text else ())):
            x = rng.normal(size=(3, 8))
            (folder / name).mkdir(parents=True, exist_ok=True)
            unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
            np.save(folder / name / f"{name}_{number}.npy", unit)
        if metadata:
            (folder / "metadata").mkdir(exist_ok=True)
            table = {
                "image_path": [f"{number:05d}/{i}" for i in range(3)],
                "caption": ["a", None, "c"],
                "NSFW": ["UNLIKELY"] * 3,
            }
            pq.write_table(pa.table(table), folder / f"metadata/metadata_{number}.parquet")
    return folder


def test_a_clip_retrieval_folder(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path)
    before = sorted(folder.rglob("*"))
    store = Store.open(folder)
    arrays = [np.load(folder / f"img_emb/img_emb_{n}.npy") for n in (0, 2, 10)]  # by number, not by name
    features = store.features()
    assert np.array_equal(features.image.numpy(), np.concatenate(arrays).astype(np.float32))
    assert features.image_ids[3:5] == ("00002/0", "00002/1")
    assert features.captions is not None
    assert features.captions[:3] == ("a", "", "c")
    info = store.encoders["image"]
    assert (info.id, info.normalized, info.dim) == ("precomputed:clip-retrieval", True, 8)
    assert sorted(folder.rglob("*")) == before
    named = open_clip_retrieval(folder, "ViT-B-32", "openai")
    assert named.encoders["text"].id == "precomputed:ViT-B-32"
    assert named.text_fingerprint != store.text_fingerprint
    with pytest.raises(InputError, match="precomputed:clip-retrieval"):
        store.require(text=named.text_fingerprint)


def test_another_content_is_another_sha256(tmp_path: Path) -> None:
    one = Store.open(clip_folder(tmp_path / "a"))
    assert one.sha256 == Store.open(clip_folder(tmp_path / "b")).sha256
    path = one.path / "img_emb/img_emb_0.npy"
    np.save(path, -np.load(path))
    assert Store.open(one.path).sha256 != one.sha256


def test_a_clip_retrieval_folder_without_texts_or_metadata(tmp_path: Path) -> None:
    store = Store.open(clip_folder(tmp_path, text=False, metadata=False))
    assert store.sides == ("image",)
    assert store.rows("image", store.rows_of("image")).shape == (9, 8)
    with pytest.raises(InputError, match="text features"):
        store.features()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "text_emb/text_emb_2.npy").unlink(), "shard 2"),
        (lambda f: np.save(f / "text_emb/text_emb_2.npy", np.zeros((2, 8), np.float16)), "3 images and 2 texts"),
        (
            lambda f: np.save(f / "img_emb/img_emb_2.npy", np.zeros((3, 7), np.float16)),
            "shard 2.*7-d.*8-d",
        ),
        (lambda f: np.save(f / "img_emb/img_emb_2.npy", np.zeros(3, np.int64)), r"\(3,\) int64"),
        (lambda f: (f / "img_emb/img_emb_2.npy").write_bytes(b"x"), r"img_emb_2\.npy"),
    ],
)
def test_clip_retrieval_shards_that_do_not_fit(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = clip_folder(tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        Store.open(folder)
    assert "\n" not in str(caught.value)


def test_metadata_of_other_length(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path)
    pq.write_table(pa.table({"caption": ["x"]}), folder / "metadata/metadata_2.parquet")
    with pytest.raises(InputError, match=r"metadata_2\.parquet.*\b3\b"):
        Store.open(folder).features()


def test_a_store_that_lost_its_manifest_is_not_taken_for_clip_retrievals(both: Store) -> None:
    (both.path / "csaligner.json").unlink()
    with pytest.raises(InputError, match=r"csaligner\.json"):
        Store.open(both.path)


def test_a_clip_retrieval_folder_is_verified(tmp_path: Path) -> None:
    store = Store.open(clip_folder(tmp_path))
    store.verify()
    path = store.path / "text_emb/text_emb_2.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"text_emb_2\.npy.*truncated"):
        store.verify()
    path.unlink()
    with pytest.raises(InputError, match=r"missing.*text_emb_2\.npy"):
        store.verify()
