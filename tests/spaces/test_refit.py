"""Warm re-fit: new pairs are added with the choices of an earlier fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from csaligner import CSAligner, CSAlignerError
from tests.support.commands import csaligner

D = (48, 40)


def pairs(n: int, seed: int, *, shifted: bool) -> tuple[Tensor, Tensor]:
    """Pairs of 48 and 40 dimensions; those of the shifted domain have their shared part elsewhere."""
    g = torch.Generator().manual_seed(9)
    maps = [torch.randn(32, d, generator=g) for d in D]
    turn = torch.linalg.qr(torch.randn(32, 32, generator=g))[0]
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 32, generator=g) * torch.arange(1, 33).float() ** -0.8
    shared = shared @ turn + turn[0] if shifted else shared
    return shared @ maps[0] + 0.6 * torch.randn(n, D[0], generator=g), torch.tanh(shared) @ maps[1] + 0.6 * torch.randn(
        n, D[1], generator=g
    )


def joined(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])


def work(do: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, which do not depend on how busy the machine is."""
    with FlopCounterMode(display=False) as counter:
        do()
    return int(counter.get_total_flops())


def test_a_fifth_of_new_pairs_recovers_a_full_fit_with_a_tenth_of_the_work() -> None:
    old, new, test = pairs(1600, 1, shifted=False), pairs(400, 2, shifted=True), pairs(300, 3, shifted=True)
    aligner, full = CSAligner(seed=0).fit(*old), CSAligner(seed=0)
    before, both = aligner.score(*test), joined(old, new)
    most = work(lambda: full.fit(*both))
    least = work(lambda: aligner.refit(*both))
    after, wanted = aligner.score(*test), full.score(*test)
    assert wanted > before + 0.05
    assert after - before >= 0.9 * (wanted - before)
    assert 0 < least <= 0.1 * most


def test_vectors_of_the_fixed_side_stay_equal() -> None:
    old, new = pairs(400, 1, shifted=False), pairs(100, 2, shifted=True)
    aligner = CSAligner(image_adapter="identity", text_adapter="linear", epochs=0).fit(*old)
    images, texts = aligner.transform_image(old[0]), aligner.transform_text(old[1])
    aligner.refit(*joined(old, new))
    assert np.array_equal(aligner.transform_image(old[0]), images)
    assert not np.array_equal(aligner.transform_text(old[1]), texts)


def test_a_refit_needs_a_fit() -> None:
    with pytest.raises(CSAlignerError, match="not fitted"):
        CSAligner().refit(*pairs(100, 1, shifted=False))


def test_train_resumes_from_a_run_with_new_pairs(tmp_path: Path) -> None:
    for name, rows in (("old", pairs(300, 1, shifted=False)), ("new", pairs(100, 2, shifted=True))):
        for side, x in zip("ab", rows, strict=True):
            np.save(tmp_path / f"{name}-{side}.npy", x.numpy())
        files = ("--image-features", tmp_path / f"{name}-a.npy", "--text-features", tmp_path / f"{name}-b.npy")
        assert csaligner("import", *files, "--out", tmp_path / name).returncode == 0
    first = csaligner("train", "--train-data", tmp_path / "old", "--out", tmp_path / "run", "-q")
    assert first.returncode == 0, first.stderr
    words = ("--train-data", tmp_path / "new", "--resume-from", tmp_path / "run", "--out", tmp_path / "again")
    again = csaligner("train", *words)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again-pairs").is_dir()
    old, new = ((tmp_path / run / "selection.json").read_text(encoding="utf-8") for run in ("run", "again"))
    assert '"kind"' in old
    assert old.partition('"prior"')[0] == new.partition('"prior"')[0]
