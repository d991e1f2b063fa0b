"""Feature store: round trip, checksums, encoder fingerprints and rejected input."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from csaligner.checks import InputError
from csaligner.datasets.split import split_of
from csaligner.integrity import write_sealed
from csaligner.store.store import Store, write_store
from csaligner.types import EncoderInfo, PairedFeatures

IMAGE = EncoderInfo("some-image", "1", "image", 5, {"size": 7})
TEXT = EncoderInfo("some-text", "2", "text", 3, {})


def some_features(n: int = 40) -> PairedFeatures:
    """Return n images with 1, 2, 3, 1, 2, ... captions in random order."""
    generator = torch.Generator().manual_seed(0)
    owners = torch.tensor([i for i in range(n) for _ in range(1 + i % 3)])
    owners = owners[torch.randperm(len(owners), generator=generator)]
    return PairedFeatures(
        torch.randn(n, 5, generator=generator),
        torch.randn(len(owners), 3, generator=generator),
        owners,
        tuple(f"id {i} ü" for i in range(n)),
        tuple(f"caption {k} 猫" for k in range(len(owners))),
    )


def pairs(features: PairedFeatures) -> dict[str | int, tuple[str, list[float], list[float]]]:
    """Return caption -> image id, image row, text row."""
    captions: Any = features.captions or range(len(features.text))
    return {
        caption: (features.image_ids[i], features.image[i].tolist(), features.text[k].tolist())
        for k, (caption, i) in enumerate(zip(captions, features.text_to_image.tolist(), strict=True))
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_store(tmp_path / "store", some_features(), (IMAGE, TEXT))


def edit(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    path = store.path / "csaligner.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    write_sealed(path, value)  # as another csaligner would have written it


def test_what_goes_in_comes_out(store: Store) -> None:
    found = store.features()
    assert pairs(found) == pairs(some_features())
    assert len(set(found.image_ids)) == len(found.image) == store.n_images == 40
    assert len(found.text) == store.n_captions == 79
    assert found.image.dtype == found.text.dtype == torch.float32


def test_splits_partition_the_images(store: Store) -> None:
    parts = {name: store.features(name) for name in ("train", "test")}
    for name, part in parts.items():
        assert {split_of(image_id) for image_id in part.image_ids} == {name}
        assert store.counts[name] == (len(part.image), len(part.text))  # type: ignore[index]
    assert sum(images for images, _ in store.counts.values()) == 40
    everything = pairs(store.features())
    assert all(everything[k] == v for part in parts.values() for k, v in pairs(part).items())


def test_an_empty_split_is_an_error_that_says_what_there_is(tmp_path: Path) -> None:
    features = some_features(2)
    store = write_store(tmp_path / "s", features, (IMAGE, TEXT), splits=dict.fromkeys(features.image_ids, "train"))
    assert store.features("train").image_ids == store.features().image_ids
    with pytest.raises(InputError, match=r"'test'.*2.*train"):
        store.features("test")
    with pytest.raises(InputError, match="'train'"):
        store.features("trian")  # type: ignore[arg-type]


def test_the_layout_is_clip_retrievals(store: Store) -> None:
    image = np.load(store.path / "img_emb/img_emb_0.npy")
    text = np.load(store.path / "text_emb/text_emb_0.npy")
    metadata = pq.read_table(store.path / "metadata/metadata_0.parquet").to_pydict()
    assert list(metadata) == ["image_id", "caption", "image_path", "split", "group"]
    assert len(image) == len(text) == len(metadata["caption"]) == 79
    wanted = pairs(some_features())
    for row, caption in enumerate(metadata["caption"]):
        assert wanted[caption] == (metadata["image_id"][row], image[row].tolist(), text[row].tolist())


def test_the_manifest_tells_all(store: Store) -> None:
    value = json.loads((store.path / "csaligner.json").read_text(encoding="utf-8"))
    assert value["format_version"] == 1
    assert value["complete"] is True
    assert value["image"]["id"] == "some-image"
    assert value["image"]["preprocessing"] == {"size": 7}
    assert value["text"]["fingerprint"] == TEXT.fingerprint
    assert (value["n_images"], value["n_captions"], value["dtype"]) == (40, 79, "float32")
    f = some_features()
    norm = float(f.image[f.text_to_image].double().norm(dim=1).mean())
    assert value["mean_norm"]["image"] == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtype_of_the_files(tmp_path: Path, dtype: Literal["float32", "float16"]) -> None:
    store = write_store(tmp_path / "s", some_features(), (IMAGE, TEXT), dtype=dtype)
    assert np.load(store.path / "img_emb/img_emb_0.npy").dtype == dtype
    found = store.features().text
    assert found.dtype == torch.float32
    error = (found - some_features().text).abs().max()
    assert error < 2e-3 if dtype == "float16" else error == 0


def test_image_paths(tmp_path: Path) -> None:
    paths = {"id 0 ü": Path("/p/0.png")}
    store = write_store(tmp_path / "s", some_features(3), (IMAGE, TEXT), image_paths=paths)
    assert store.image_paths == paths


def test_the_makers_are_checked(store: Store) -> None:
    store.require(image=IMAGE, text=TEXT.fingerprint)
    store.require()
    other = EncoderInfo("some-text", "3", "text", 3, {})
    with pytest.raises(InputError, match=rf"text features.*some-text \({TEXT.fingerprint}\)"):
        store.require(image=IMAGE, text=other)
    with pytest.raises(InputError, match="image features"):
        store.require(image="0" * 16)


def test_sha256_changes_with_the_content(tmp_path: Path, store: Store) -> None:
    same = write_store(tmp_path / "same", some_features(), (IMAGE, TEXT))
    other = write_store(tmp_path / "other", some_features(41), (IMAGE, TEXT))
    assert store.sha256 == same.sha256 != other.sha256


def test_damage_is_found(store: Store) -> None:
    store.verify()
    path = store.path / "text_emb/text_emb_0.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"text_emb/text_emb_0\.npy"):
        Store.open(store.path).verify()


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        Store.open(tmp_path / "none")
    with pytest.raises(InputError, match=r"csaligner\.json"):
        Store.open(tmp_path)


def test_an_unfinished_store(store: Store) -> None:
    edit(store, lambda value: value.update(complete=False))
    with pytest.raises(InputError, match="finished"):
        Store.open(store.path)


def test_another_format_version(store: Store) -> None:
    edit(store, lambda value: value.update(format_version=2))
    with pytest.raises(InputError, match=r"format.*2.*1"):
        Store.open(store.path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format_version": 1}', "\xff"])
def test_a_manifest_that_is_none(store: Store, text: str) -> None:
    (store.path / "csaligner.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"csaligner\.json"):
        Store.open(store.path)


@pytest.mark.parametrize("name", ["img_emb/img_emb_0.npy", "text_emb/text_emb_0.npy", "metadata/metadata_0.parquet"])
def test_a_missing_or_cut_file(store: Store, name: str) -> None:
    path = store.path / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"metadata|\.npy|\.json") as caught:
        Store.open(store.path)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(InputError, match=r"metadata|\.npy|\.json"):
        Store.open(store.path)


def test_arrays_of_another_shape_or_dtype(store: Store) -> None:
    path = store.path / "img_emb/img_emb_0.npy"
    array = np.load(path)
    for wrong in (array[:-1], array[:, :4], array.astype(np.float16)):
        np.save(path, wrong)
        with pytest.raises(InputError, match=r"img_emb_0\.npy.*\(79, 5\) float32"):
            Store.open(store.path)


def test_metadata_with_too_few_rows(store: Store) -> None:
    path = store.path / "metadata/metadata_0.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(InputError, match=r"shard 0.*78.*79"):
        Store.open(store.path, verify=False)


def test_metadata_without_a_column(store: Store) -> None:
    path = store.path / "metadata/metadata_0.parquet"
    pq.write_table(pa.table({"caption": ["x"] * 79}), path)
    with pytest.raises(InputError, match=r"shard 0.*image_id"):
        Store.open(store.path, verify=False)


def test_metadata_is_not_parsed_before_its_sha256_is_known(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.path / "metadata/metadata_0.parquet"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # in the footer
    path.write_bytes(content)
    monkeypatch.setattr("csaligner.store.row_metadata.metadata_columns", lambda path: pytest.fail("it was parsed"))
    with pytest.raises(InputError, match=r"metadata_0\.parquet.*SHA-256"):
        Store.open(store.path)


def test_write_refuses_what_does_not_fit(tmp_path: Path, store: Store) -> None:
    f = some_features()
    out = tmp_path / "new"
    with pytest.raises(InputError, match=r"^out"):
        write_store(store.path, f, (IMAGE, TEXT))
    with pytest.raises(InputError, match=r"^image.*5.*some-text.*3"):
        write_store(out, f, (TEXT, IMAGE))
    bad = f.text.clone()
    bad[3, 1] = torch.nan
    with pytest.raises(InputError, match=r"^text.*1 of 79.*NaN.*row 3"):
        write_store(out, PairedFeatures(f.image, bad, f.text_to_image, f.image_ids), (IMAGE, TEXT))
    with pytest.raises(InputError, match=r"image_ids.*39.*40"):
        write_store(out, PairedFeatures(f.image, f.text, f.text_to_image, f.image_ids[1:]), (IMAGE, TEXT))
    assert not out.exists()
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_ids": ("a", "b", "a")}, "image_ids.*'a'"),
        ({"text_to_image": torch.tensor([0, 1, 2, 3])}, r"text_to_image.*caption 3\b"),
        ({"text_to_image": torch.tensor([0, -1, 2, 1])}, "text_to_image.*caption 1.*-1"),
        ({"text_to_image": torch.tensor([0.0, 1.0, 2.0, 2.0])}, r"text_to_image.*float32.*\(4,\)"),
        ({"text_to_image": torch.tensor([0, 2, 2, 2])}, "text_to_image.*'b'"),
    ],
)
def test_write_refuses_pairs_that_would_be_lost(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    good = PairedFeatures(torch.eye(3, 5), torch.eye(4, 3), torch.tensor([0, 1, 2, 2]), ("a", "b", "c"))
    with pytest.raises(InputError, match=message):
        write_store(tmp_path / "s", dataclasses.replace(good, **changes), (IMAGE, TEXT))
    assert not (tmp_path / "s").exists()
    assert write_store(tmp_path / "s", good, (IMAGE, TEXT)).features().image_ids == ("a", "b", "c")


def test_write_refuses_unknown_splits_and_swapped_encoders(tmp_path: Path) -> None:
    f = some_features(3)
    with pytest.raises(InputError, match=r"'id 1 ü'.*'dev'"):
        write_store(tmp_path / "s", f, (IMAGE, TEXT), splits={"id 1 ü": "dev"})  # type: ignore[dict-item]
    swapped = (dataclasses.replace(TEXT, dim=5), dataclasses.replace(IMAGE, dim=3))
    with pytest.raises(InputError, match=r"^image.*some-text"):
        write_store(tmp_path / "s", f, swapped)


def test_values_too_large_for_the_dtype_are_not_written_as_infinity(tmp_path: Path) -> None:
    f = some_features(3)
    large = dataclasses.replace(f, text=f.text.index_fill(0, torch.tensor([2]), 7e4))
    with pytest.raises(InputError, match=r"dtype.*float16.*text.*70000.*float32"):
        write_store(tmp_path / "s", large, (IMAGE, TEXT), dtype="float16")
    assert not (tmp_path / "s").exists()
    assert torch.equal(write_store(tmp_path / "s", large, (IMAGE, TEXT)).features().text, large.text)


def test_features_of_a_network_in_training_are_taken_as_they_are(tmp_path: Path) -> None:
    f = some_features(3)
    live = dataclasses.replace(f, image=f.image.bfloat16().requires_grad_())
    store = write_store(tmp_path / "s", live, (IMAGE, TEXT))
    wanted = dict(zip(f.image_ids, f.image.bfloat16().float().tolist(), strict=True))
    found = store.features()
    assert dict(zip(found.image_ids, found.image.tolist(), strict=True)) == wanted
