"""Import of existing features into a store, from Python and the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from csaligner.checks import InputError
from csaligner.cli import app
from csaligner.store.import_features import FeatureFiles, import_features, write_side
from csaligner.store.read_features import precomputed_info
from csaligner.store.store import Store

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)


def saved(path: Path, x: np.ndarray) -> Path:
    match path.suffix:
        case ".npy":
            np.save(path, x)
        case ".npz":
            np.savez(path, features=x)
        case ".safetensors":
            save_file({"features": torch.from_numpy(x)}, path)
        case _:
            pq.write_table(pa.table({"id": list(range(len(x))), "features": list(x)}), path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".parquet"])
def test_pairs_by_position_on_the_command_line(tmp_path: Path, suffix: str) -> None:
    files = [str(saved(tmp_path / f"{name}{suffix}", x)) for name, x in (("x", X), ("y", Y))]
    words = ["import", "--image-features", files[0], "--text-features", files[1], "--image-name", "mine"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    store = Store.open(tmp_path / "store")
    features = store.features()
    assert np.array_equal(features.image.numpy(), X)
    assert np.array_equal(features.text[features.text_to_image.argsort()].numpy(), Y)
    assert store.encoders["image"].id == "precomputed:mine"
    assert not store.encoders["image"].normalized


def test_pairs_by_id_with_captions(tmp_path: Path) -> None:
    for name, lines in (("ids", "abcdef"), ("owners", "aabccf"), ("captions", "123456")):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    x, y = saved(tmp_path / "x.npy", X), saved(tmp_path / "y.npy", Y)
    parts = (tmp_path / "ids", tmp_path / "owners", tmp_path / "captions")
    with pytest.warns(UserWarning, match="2 images"):
        features = import_features(FeatureFiles(x, y, ("p", "q"), *parts), tmp_path / "store").features()
    assert features.captions is not None
    owners = [features.image_ids[i] for i in features.text_to_image.tolist()]
    assert dict(zip(features.captions, owners, strict=True)) == dict(zip("123456", "aabccf", strict=True))
    (tmp_path / "captions").write_text("one\n")
    with (
        pytest.raises(InputError, match=r"captions.*1.*6"),
        pytest.warns(UserWarning, match="2 images"),
    ):
        import_features(FeatureFiles(x, y, ("p", "q"), *parts), tmp_path / "other")


def test_one_side_alone(tmp_path: Path) -> None:
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    (tmp_path / "ids").write_text("a\na\nb\nb\nc\nd\n")
    path = saved(tmp_path / "y.npy", unit)
    store = import_features(FeatureFiles(text=path, text_image_ids=tmp_path / "ids"), tmp_path / "store")
    assert (store.sides, store.n_captions, store.n_images) == (("text",), 6, 0)
    assert store.encoders["text"].normalized
    assert np.array_equal(store.rows("text", store.rows_of("text")).numpy(), unit)
    images = write_side(tmp_path / "images", torch.from_numpy(X), precomputed_info("m", "image", 4))
    assert (images.sides, images.n_images) == (("image",), 6)
    with pytest.raises(InputError, match=r"ids.*'a'"):
        write_side(tmp_path / "x", torch.from_numpy(X), precomputed_info("m", "image", 4), ids=list("aabcde"))
    with pytest.raises(InputError, match="missing"):
        import_features(FeatureFiles(), tmp_path / "x")
    with pytest.raises(InputError, match="exists"):
        write_side(tmp_path / "images", torch.from_numpy(X), precomputed_info("m", "image", 4))


def test_only_line_ends_split_captions(tmp_path: Path) -> None:
    """U+2028 and its like are part of a caption."""
    texts = ["one\u2028still one", "two\x85", *map(str, range(4))]
    (tmp_path / "captions.txt").write_bytes("\r\n".join(texts).encode())
    files = FeatureFiles(saved(tmp_path / "x.npy", X), saved(tmp_path / "y.npy", Y), captions=tmp_path / "captions.txt")
    assert list(import_features(files, tmp_path / "store").features().captions or ()) == texts


def test_missing_model_names_are_reported(tmp_path: Path) -> None:
    files = [str(saved(tmp_path / f"{name}.npy", x)) for name, x in (("x", X), ("y", Y))]

    def said(out: str, *words: str) -> str:
        done = CliRunner().invoke(app, ["import", "--out", str(tmp_path / out), *words])
        assert done.exit_code == 0, done.output
        return done.stderr

    both = ("--image-features", files[0], "--text-features", files[1])
    assert "name the models with --image-name MODEL and --text-name MODEL" in said("none", *both)
    assert Store.open(tmp_path / "none").encoders["text"].id == "precomputed:text"
    one = said("one", *both, "--image-name", "a")
    assert "--text-name MODEL" in one
    assert "--image-name" not in one
    assert "-name" not in said("named", *both, "--image-name", "a", "--text-name", "b")
    assert "--image-name" not in said("texts", "--text-features", files[1])
