"""Reading feature arrays from every file format."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from csaligner.checks import InputError
from csaligner.encoders import open_encoder
from csaligner.store.read_features import load_features, precomputed_info

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def write(path: Path) -> Path:
    match path.suffix:
        case ".npy":
            np.save(path, X)
        case ".npz":
            np.savez(path, image=X)
        case ".safetensors":
            save_file({"image": torch.from_numpy(X)}, path)
        case ".parquet":
            pq.write_table(pa.table({"id": list(range(7)), "image": list(X)}), path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".parquet"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}")
    found = load_features(path)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(X))
    if suffix != ".npy":
        assert torch.equal(load_features(path, "image"), found)
        with pytest.raises(InputError, match=r"'imag'.*'image'"):
            load_features(path, "imag")


def test_fixed_size_lists_of_parquet(tmp_path: Path) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.astype(np.float64).ravel()), 3)
    pq.write_table(pa.table({"v": column}), tmp_path / "x.parquet")
    assert torch.equal(load_features(tmp_path / "x.parquet"), torch.from_numpy(X.astype(np.float64)))


def test_several_arrays_need_a_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=X, b=2 * X)
    with pytest.raises(InputError, match=r"key: .*a, b"):
        load_features(tmp_path / "x.npz")
    assert torch.equal(load_features(tmp_path / "x.npz", "b"), torch.from_numpy(2 * X))


def test_paired_features_in_one_array_need_a_number(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.stack([X, 2 * X]))
    with pytest.raises(InputError, match=r"image_key: .*\(2, 7, 3\).*0, 1"):
        load_features(tmp_path / "x.npy", option="image_key")
    assert torch.equal(load_features(tmp_path / "x.npy", "1"), torch.from_numpy(2 * X))
    np.save(tmp_path / "y.npy", X)
    with pytest.raises(InputError, match="remove the key"):
        load_features(tmp_path / "y.npy", "1")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".parquet"])
def test_a_cut_file(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"cut{suffix}")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=rf"cut\{suffix}") as caught:
        load_features(path)
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(pickle.dumps([[1.0]]))
    np.save(tmp_path / "y.npy", np.array([{"a": 1}]), allow_pickle=True)
    for name in ("x.npy", "y.npy"):
        with pytest.raises(InputError, match=name):
            load_features(tmp_path / name)


def test_bad_values_name_the_file(tmp_path: Path) -> None:
    bad = X.copy()
    bad[2, 1] = np.inf
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises(InputError, match=r"bad\.npy.*1 of 7.*NaN.*row 2"):
        load_features(tmp_path / "bad.npy")
    np.save(tmp_path / "flat.npy", X[0])
    with pytest.raises(InputError, match=r"flat\.npy.*\(3,\)"):
        load_features(tmp_path / "flat.npy")


def test_no_such_file_or_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file"):
        load_features(tmp_path / "none.npy")
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"\.pt\b.*\.npy, \.npz, \.safetensors, \.parquet"):
        load_features(tmp_path / "x.pt")


def test_info_tells_sources_apart() -> None:
    one = precomputed_info("clip", "image", 512)
    assert one == precomputed_info("clip", "image", 512)
    others = [
        precomputed_info("siglip", "image", 512),
        precomputed_info("clip", "image", 512, revision="2"),
        precomputed_info("clip", "image", 512, normalized=True),
    ]
    assert len({info.fingerprint for info in [one, *others]}) == 4


def test_features_that_were_given_encode_nothing() -> None:
    with pytest.raises(InputError, match="precomputed:clip"):
        open_encoder("precomputed:clip", "image")


@pytest.mark.parametrize("make", [pa.large_list, pa.list_view, pa.large_list_view])
def test_other_list_types_of_parquet(tmp_path: Path, make: Callable[[pa.DataType], pa.DataType]) -> None:
    """Polars writes large lists."""
    try:
        pq.write_table(pa.table({"v": pa.array(X.tolist(), make(pa.float32()))}), tmp_path / "x.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip("this pyarrow writes no such lists")
    assert torch.equal(load_features(tmp_path / "x.parquet"), torch.from_numpy(X))


@pytest.mark.parametrize(
    ("rows", "words"),
    [([[1.0, 2.0], None], "row 1 is None"), ([[1.0, 2.0], [1.0]], "row 1 has 1"), ([[1.0, None]], "row 0")],
)
def test_missing_and_ragged_rows_of_parquet_are_named(tmp_path: Path, rows: list[Any], words: str) -> None:
    pq.write_table(pa.table({"v": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=words):
        load_features(tmp_path / "x.parquet")


def test_a_parquet_without_lists(tmp_path: Path) -> None:
    pq.write_table(pa.table({"0": [1.0], "1": [2.0]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no column of lists"):
        load_features(tmp_path / "x.parquet")
