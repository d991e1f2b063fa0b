"""Two clouds of one meaning without pairs: matched by their structure, or said to be unknowable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from csaligner import CSAligner, InputError
from csaligner.spaces import Space, UnpairedStart, align_unpaired
from tests.support.commands import csaligner


def clusters(n: int, d: int, count: int, seed: int) -> Tensor:
    """Rows in clusters of different sizes around random centres."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, d, generator=g)
    sizes = torch.rand(count, generator=g) + 0.3
    return centres[torch.multinomial(sizes, n, replacement=True, generator=g)] + 0.5 * torch.randn(n, d, generator=g)


def hidden(rows: Tensor, e: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows in a hidden basis of e dimensions, with noise and a shift, in random order; and that order."""
    g = torch.Generator().manual_seed(seed)
    d = rows.shape[1]
    basis = torch.linalg.qr(torch.randn(max(d, e), max(d, e), generator=g))[0][:d, :e]
    order = torch.randperm(len(rows), generator=g)
    return (rows @ basis + noise * torch.randn(len(rows), e, generator=g) + 0.3)[order], order


def top1(found: UnpairedStart, x: Tensor, y: Tensor, order: Tensor) -> float:
    near = (found.transform_first(x) @ found.transform_second(y).T).argmax(dim=1)
    return float((order[near] == torch.arange(len(x))).float().mean())


@pytest.mark.parametrize(("count", "e", "noise"), [(12, 48, 0.1), (25, 32, 0.15)])
def test_a_hidden_rotation_of_clusters_is_found(count: int, e: int, noise: float) -> None:
    x = clusters(1000, 32, count, seed=count)
    y, order = hidden(x, e, noise, seed=1)
    found = align_unpaired(Space.of("old", x), Space.of("new", y))
    assert found.known
    assert top1(found, x, y, order) >= 0.9
    first, second = found.pairs(x, y)
    assert (order[second] == first).float().mean() >= 0.95
    aligner = CSAligner(epochs=0).fit(x[first], y[second])
    assert aligner.score(x[order], y) >= 0.9


@pytest.mark.parametrize("rotated", [True, False])
def test_isotropic_rows_cannot_be_known(rotated: bool) -> None:
    x = torch.randn(400, 24, generator=torch.Generator().manual_seed(0))
    y = hidden(x, 24, 0.0, 1)[0] if rotated else torch.randn(400, 24, generator=torch.Generator().manual_seed(2))
    found = align_unpaired(Space.of("old", x), Space.of("new", y))
    assert not found.known
    assert "Cannot know" in found.sentence
    assert "old and new" in found.sentence


def test_clusters_of_other_meaning_cannot_be_known() -> None:
    found = align_unpaired(Space.of("old", clusters(500, 32, 15, 0)), Space.of("new", clusters(500, 32, 15, 1)))
    assert not found.known
    assert json.loads(json.dumps(found.record()))["known"] is False


def test_it_is_the_same_again_and_ignores_unusable_rows() -> None:
    x = clusters(400, 16, 10, 3)
    y, _ = hidden(x, 16, 0.0, 1)
    again = [align_unpaired(Space.of("a", x), Space.of("b", y), seed=5).rotation for _ in range(2)]
    assert torch.equal(*again)
    broken = torch.cat([x, torch.zeros(3, 16), torch.full((2, 16), torch.nan)])
    found = align_unpaired(Space.of("a", broken), Space.of("b", y), seed=5)
    assert found.rows == (400, 400)
    assert torch.isfinite(found.rotation).all()
    assert torch.equal(found.transform_first(x.numpy()), found.transform_first(x))
    with pytest.raises(InputError, match="rows"):
        found.transform_first(x[:, :9])


def test_wrong_arguments_are_refused() -> None:
    x = clusters(300, 8, 5, 0)
    with pytest.raises(InputError, match="names"):
        align_unpaired(Space.of("a", x), Space.of("a", x))
    with pytest.raises(InputError, match="100"):
        align_unpaired(Space.of("a", x), Space.of("b", x[:99]))


def test_the_command_maps_a_new_model_onto_an_old_index_without_pairs(tmp_path: Path) -> None:
    old = clusters(1000, 24, 15, seed=4)
    new, order = hidden(old, 32, 0.1, seed=2)
    files = tmp_path / "new.npy", tmp_path / "old.npy"
    for file, rows in zip(files, (new, old), strict=True):
        np.save(file, rows.numpy())
    done = csaligner("migrate", *files, "--pairs", "none", "--out", tmp_path / "moved")
    assert done.returncode == 0, done.stderr
    assert "check some matches" in done.stdout
    assert "Do not match without pairs" in done.stdout
    queries = CSAligner.load(tmp_path / "moved" / "aligner").transform_text(new)
    stored = old / old.norm(dim=1, keepdim=True)
    assert ((torch.from_numpy(queries) @ stored.T).argmax(dim=1) == order).float().mean() >= 0.9
    with_index = csaligner("migrate", *files, "--pairs", "none", "--index", files[1])
    assert with_index.returncode == 1
    assert "index" in with_index.stderr


def test_the_command_writes_nothing_that_cannot_be_known(tmp_path: Path) -> None:
    x = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    for name, rows in (("new", hidden(x, 16, 0.0, 1)[0]), ("old", x)):
        np.save(tmp_path / f"{name}.npy", rows.numpy())
    files = tmp_path / "new.npy", tmp_path / "old.npy"
    done = csaligner("migrate", *files, "--pairs", "none", "--out", tmp_path / "moved")
    assert done.returncode == 1
    assert "Cannot know how new and old match" in done.stderr
    assert not (tmp_path / "moved").exists()
    assert csaligner("migrate", *files, "--pairs", "none").returncode == 0
