"""Migration to a new model: the old vectors stay, new queries are mapped onto them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from csaligner import CSAligner, InputError
from csaligner.spaces import Space, migrate
from tests.support.commands import csaligner


def models(n: int, d: int, e: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors (n, e) of an old model, and (n, d) of a new one: another basis, more dimensions and noise."""
    g = torch.Generator().manual_seed(seed)
    old = torch.randn(n, e, generator=g) * torch.arange(1, e + 1).float() ** -0.5
    basis = torch.linalg.qr(torch.randn(max(d, e), max(d, e), generator=g))[0][:e, :d]
    new = old @ basis
    return new + noise * new.norm(dim=1).mean() / d**0.5 * torch.randn(n, d, generator=g), old


def test_a_rotation_with_noise_keeps_the_results() -> None:
    new, old = models(20_000, 512, 384, 0.3)
    some = range(2000)
    sample = Space.of("new", new[:2000], some), Space.of("old", old[:2000], some)
    found = migrate(*sample, index=Space.of("index", old))
    assert found.indexed == 20_000
    assert found.quality["chosen"].low >= 0.95
    mapped = found.queries(new[2000:2300])
    top = (mapped @ torch.nn.functional.normalize(old, dim=1).T).topk(10).indices
    assert (top == torch.arange(2000, 2300)[:, None]).any(dim=1).float().mean() >= 0.95


@pytest.mark.parametrize("dims", [(48, 64), (64, 48), (48, 48)])
def test_it_is_as_good_as_the_better_of_the_closed_forms(dims: tuple[int, int]) -> None:
    new, old = models(2000, *dims, noise=1.0)
    found = migrate(Space.of("new", new + 0.1), Space.of("old", old + 0.05))
    best = max(found.quality[name].recall10 for name in ("linear", "procrustes"))
    assert found.quality["chosen"].recall10 >= best - 0.02


def test_old_vectors_are_only_scaled() -> None:
    new, old = models(300, 24, 16, 0.1)
    aligner = migrate(Space.of("new", new), Space.of("old", old)).aligner
    assert torch.allclose(aligner.encode_image(old), torch.nn.functional.normalize(old, dim=1), atol=1e-6)


def test_unrelated_models_are_reported() -> None:
    new, _ = models(600, 24, 16, 0.1)
    _, old = models(600, 24, 16, 0.1, seed=1)
    with pytest.warns(UserWarning, match="under a half"):
        found = migrate(Space.of("new", new), Space.of("old", old))
    assert not found.enough
    assert "embed the collection again" in found.sentence


def test_errors() -> None:
    new, old = models(100, 24, 16, 0.1)
    with pytest.raises(InputError, match="usable pairs"):
        migrate(Space.of("new", new[:40]), Space.of("old", old[:40]))
    with pytest.raises(InputError, match="index"):
        migrate(Space.of("new", new), Space.of("old", old), index=Space.of("index", new))


def test_the_command_exports_what_maps_queries(tmp_path: Path) -> None:
    new, old = (x.numpy() for x in models(400, 24, 16, 0.2))
    np.save(tmp_path / "new.npy", new)
    np.save(tmp_path / "old.npy", old)
    files = (str(tmp_path / "new.npy"), str(tmp_path / "old.npy"))
    done = csaligner("migrate", *files, "--out", tmp_path / "out", "--format", "npz,onnx", "--json")
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "out" / "migration.json").read_text(encoding="utf-8"))
    wanted = CSAligner.load(tmp_path / "out" / "aligner").transform_text(new[:5])
    arrays = np.load(tmp_path / "out" / "npz" / "text.npz")
    x = new[:5] / np.linalg.norm(new[:5], axis=1, keepdims=True)
    y = (x - arrays["mean"]) @ arrays["map"] + arrays["offset"]
    assert np.allclose(y / np.linalg.norm(y, axis=1, keepdims=True), wanted, atol=1e-5)
    assert (tmp_path / "out" / "onnx" / "text.onnx").is_file()
    assert csaligner("migrate", *files, "--out", tmp_path / "out").returncode == 1


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    new, old = (x.numpy() for x in models(400, 24, 16, 0.2))
    new[0], new[1] = np.nan, 0
    np.save(tmp_path / "new.npy", new)
    np.save(tmp_path / "old.npy", old)
    done = csaligner("migrate", tmp_path / "new.npy", tmp_path / "old.npy", "--json")
    assert done.returncode == 0, done.stderr
    assert "new: ignored 2 rows" in done.stderr
    assert "old: ignored" not in done.stderr


def test_a_sentence_transformer_maps_texts_onto_the_old_index(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    from csaligner import open_encoder

    encoder = open_encoder("bundled:all-MiniLM-L6-v2", "text")
    words = [
        f"{colour} {thing} {n}" for colour in ("red", "blue") for thing in ("car", "cat", "tree") for n in range(10)
    ]
    new = encoder.encode([encoder.prepare(word) for word in words])
    old = new @ torch.randn(384, 32, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "new.npy", new.numpy())
    np.save(tmp_path / "old.npy", old.numpy())
    options = ("--format", "sentence-transformers", "--encoder", "bundled:all-MiniLM-L6-v2")
    csaligner("migrate", tmp_path / "new.npy", tmp_path / "old.npy", "--out", tmp_path / "out", *options)
    model = SentenceTransformer(str(tmp_path / "out" / "sentence-transformers"), device="cpu")
    wanted = CSAligner.load(tmp_path / "out" / "aligner").transform_text(new.numpy()[:4])
    assert np.allclose(model.encode(words[:4]), wanted, atol=1e-4)
