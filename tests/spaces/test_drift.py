"""Drift: whether new rows still fit the aligner of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import csaligner

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(6, 12)), RNG.normal(size=(6, 10))


def pairs(n: int, seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of 12 and 10 dimensions; with a shift, their shared part lies elsewhere and maps in another way."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 6)) + shift
    other = np.random.default_rng(5).normal(size=(6, 10))
    text = shared @ (other if shift else MAPS[1])
    return (shared @ MAPS[0] + 0.3 * rng.normal(size=(n, 12))).astype("f4"), text.astype("f4")


@pytest.fixture(scope="module")
def run(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    def make(folder: Path) -> None:
        folder.mkdir()
        for name, rows in zip("ab", pairs(900, 0), strict=True):
            np.save(folder / f"{name}.npy", rows)
        files = ("--image-features", folder / "a.npy", "--text-features", folder / "b.npy")
        assert csaligner("import", *files, "--out", folder / "store").returncode == 0
        words = ("--train-data", folder / "store", "--out", folder / "run", "-q", "epochs=0", "names=[eeg,image]")
        assert csaligner("train", *words).returncode == 0

    return once("drift", make)


def against(run: Path, folder: Path, rows: tuple[np.ndarray, np.ndarray], *options: str) -> dict[str, object]:
    for name, x in zip("xy", rows, strict=True):
        np.save(folder / f"{name}.npy", x)
    done = csaligner("diagnose", folder / "x.npy", folder / "y.npy", "--against", run / "run", "--json", *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_rows_of_the_same_kind_fit(run: Path, tmp_path: Path) -> None:
    assert against(run, tmp_path, pairs(300, 1))["verdict"] == "fits"
    assert against(run, tmp_path, pairs(300, 1), "--pairs", "none")["verdict"] == "fits"


def test_rows_of_another_domain_do_not(run: Path, tmp_path: Path) -> None:
    found = against(run, tmp_path, pairs(300, 1, 2.0))
    assert found["verdict"] == "drifted"
    assert found["spaces"] == ["eeg", "image"]
    alone = against(run, tmp_path, pairs(300, 1, 2.0), "--pairs", "none")
    assert alone["verdict"] == "changed"
    assert "cannot be known without pairs" in str(alone["sentence"])


def test_other_dimensions_are_refused(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((30, 5)))
    done = csaligner("diagnose", tmp_path / "x.npy", tmp_path / "x.npy", "--against", run / "run")
    assert done.returncode == 1
    assert "12" in done.stderr
