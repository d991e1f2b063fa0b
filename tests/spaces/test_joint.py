"""One aligner of three named spaces: library, commands, errors, tables and page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from csaligner import InputError
from csaligner.adapters import MultiAligner
from csaligner.config import TrainConfig
from csaligner.spaces import Space, align_spaces
from tests.support.commands import csaligner

WIDTHS = {"eeg": 20, "image": 24, "audio": 16}


def views(n: int, noise: float = 0.3, bend: float = 0.0) -> dict[str, Tensor]:
    """Views of n items with a common part of few dimensions, of which `bend` is not linear."""
    g = torch.Generator().manual_seed(0)
    width = 4 if bend else 8
    shared = torch.randn(n, width, generator=g)
    found = {}
    for name, d in WIDTHS.items():
        seen = shared @ torch.randn(width, d, generator=g)
        seen = (1 - bend) * seen + bend * 2 * torch.sin(2 * seen)
        found[name] = seen + noise * torch.randn(n, d, generator=g) + 0.5
    return found


def test_every_pair_of_three_spaces_is_found_by_name() -> None:
    found = align_spaces([Space.of(name, x) for name, x in views(600).items()], TrainConfig(epochs=0))
    assert not found.trained
    assert list(found.pairs) == ["eeg-image", "eeg-audio", "image-audio"]
    for pair, methods in found.pairs.items():
        a, b = pair.split("-")
        assert methods["aligned"][f"{a}_to_{b}_recall@10"] > 0.9
        assert methods["aligned"] == methods["untrained"]
    assert found.rows["test"]["eeg"] > 60
    assert found.model.encode("audio", views(600)["audio"]).shape == (600, 24)


def test_training_is_kept_only_if_it_gains() -> None:
    spaces = [Space.of(name, x) for name, x in views(600, noise=1.0).items()]
    found = align_spaces(spaces, TrainConfig(epochs=5))
    assert found.trained == (found.gain > 2 * found.error)
    bent = [Space.of(name, x) for name, x in views(900, noise=0.1, bend=0.8).items()]
    found = align_spaces(bent, TrainConfig(epochs=40, lr=2e-3, batch_size=128))
    assert found.trained
    for methods in found.pairs.values():
        before, after = ([v for key, v in methods[m].items() if key.endswith("@10")] for m in ("untrained", "aligned"))
        assert sum(after) > sum(before)


def test_rows_pair_by_ids_and_may_be_missing() -> None:
    x = views(500)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))[:400]
    spaces = [
        Space.of("eeg", x["eeg"], range(500)),
        Space.of("image", x["image"][order], order.tolist()),
        Space.of("audio", x["audio"], range(500)),
    ]
    found = align_spaces(spaces, TrainConfig(epochs=0))
    assert found.rows["train"]["image"] < found.rows["train"]["eeg"]
    assert min(m["aligned"][key] for m in found.pairs.values() for key in m["aligned"] if key.endswith("@10")) > 0.9


def test_errors_name_the_spaces() -> None:
    x = views(100)
    with pytest.raises(InputError, match=r"image \(90 rows\)"):
        align_spaces([Space.of("eeg", x["eeg"]), Space.of("image", x["image"][:90])])
    with pytest.raises(InputError, match="different names"):
        align_spaces([Space.of("eeg", x["eeg"]), Space.of("eeg", x["image"])])
    with pytest.raises(InputError, match="in all of eeg, image"):
        align_spaces([Space.of("eeg", x["eeg"][:20]), Space.of("image", x["image"][:20])])
    with pytest.raises(InputError, match="lora"):
        align_spaces([Space.of(n, v) for n, v in x.items()], TrainConfig(lora={"sides": "text"}))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cauchy_schwarz"):
        align_spaces([Space.of(n, v) for n, v in x.items()], TrainConfig(objective={"terms": {"mmd": 1.0}}))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["folder", "npz"])
def test_the_commands_train_and_evaluate_three_named_spaces(tmp_path: Path, form: str) -> None:
    data, x = tmp_path / "data", views(300)
    if form == "folder":
        data.mkdir()
        for name, rows in x.items():
            order = np.random.default_rng(len(name)).permutation(300)
            np.save(data / f"{name}.npy", rows.numpy()[order])
            (data / f"{name}.txt").write_text("\n".join(map(str, order)) + "\n", encoding="utf-8")
    else:
        data = tmp_path / "data.npz"
        np.savez(data, **{name: rows.numpy() for name, rows in x.items()})  # type: ignore[arg-type]
    run = tmp_path / "run"
    done = csaligner("train", "--train-data", data, "--names", "eeg,image,audio", "--out", run, "epochs=2", "-q")
    assert done.returncode == 0, done.stderr
    assert "eeg → audio" in done.stdout
    assert "text" not in done.stdout
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "image → audio" in page
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    again = csaligner("eval", "--run", run, "--json")
    assert again.returncode == 0, again.stderr
    values = json.loads(again.stdout)["pairs"]["eeg-image"]["aligned"]
    assert values == pytest.approx(found["pairs"]["eeg-image"]["aligned"])
    assert MultiAligner.load(run / "aligner").config.dims == WIDTHS
    refused = csaligner("eval", "--run", run, "--mixbench", tmp_path)
    assert "named spaces" in refused.stderr


def test_two_spaces_are_imported_and_wrong_names_are_refused(tmp_path: Path) -> None:
    x = views(60)
    np.savez(tmp_path / "two.npz", eeg=x["eeg"].numpy(), image=x["image"].numpy())
    two = csaligner("train", "--train-data", tmp_path / "two.npz", "--out", tmp_path / "run")
    assert two.returncode == 1
    assert "csaligner import" in two.stderr
    np.savez(tmp_path / "three.npz", **{name: rows.numpy() for name, rows in x.items()})  # type: ignore[arg-type]
    words = ("--train-data", tmp_path / "three.npz", "--out", tmp_path / "run")
    assert csaligner("train", *words, "--names", "a,b").returncode == 1
    assert csaligner("train", *words, "--val-data", tmp_path).returncode == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(2, 40, 6), (40, 6)])
def test_a_feature_file_is_imported_before_training(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "pairs.npy", np.ones(shape, dtype=np.float32))
    np.savez(tmp_path / "one.npz", a=np.ones((40, 6), dtype=np.float32))
    for name in ("pairs.npy", "one.npz"):
        done = csaligner("train", "--train-data", tmp_path / name, "--out", tmp_path / "run")
        assert done.returncode == 1
        assert "csaligner import --image-features" in done.stderr
        assert not any(word in done.stderr for word in ("vector_key", "--kind-key", "second source"))
