"""Parameter sweep: grids, resuming and result pages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csaligner.checks import InputError
from csaligner.comparison import sweep as module
from csaligner.comparison.compare import UNSELECTED, Budget
from csaligner.comparison.folds import Fold
from csaligner.comparison.result_cache import UNFINISHED
from csaligner.comparison.sweep import AUTO, GRIDS, HIDDEN, JSON, LAMBDA, PAGE, SCALE, SIGMA, configure, sweep_and_write
from csaligner.config import AdapterConfig, TrainConfig, load_config
from csaligner.paired_features import pair_features
from csaligner.types import PairedFeatures
from tests.support.commands import csaligner

ADAPTER = AdapterConfig(hidden=8)
BASE = load_config(TrainConfig, None, ["epochs=2", "batch_size=32", *UNSELECTED])
BUDGET = Budget(BASE.model_copy(update={"image_adapter": ADAPTER, "text_adapter": ADAPTER}), seeds=1, jobs=1)


def test_settings_arrive_and_leave_the_base_alone() -> None:
    config = configure(BUDGET.base, {SIGMA: "0.3", LAMBDA: "2", SCALE: "20", HIDDEN: "4"}, seed=5)
    assert config.objective.bandwidth == 0.3
    assert config.objective.terms["cauchy_schwarz"] == 2
    assert config.objective.logit_scale == 20
    assert not config.objective.learn_logit_scale
    assert config.image_adapter.hidden == config.text_adapter.hidden == 4
    assert config.seed == 5
    assert BUDGET.base.objective.terms["cauchy_schwarz"] == 1


@pytest.mark.parametrize("settings", [*AUTO.values(), *({k: v[0] for k, v in grid.items()} for grid in GRIDS.values())])
def test_every_named_setting_is_a_config(settings: dict[str, str]) -> None:
    configure(TrainConfig(), settings)


def test_an_unknown_grid_is_an_error() -> None:
    with pytest.raises(InputError, match="bandwidth"):
        sweep_and_write([], ["bandwith"], BUDGET, Path("unused"), lambda *_: None)


def test_all_points_are_measured_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "pairs.npy", rng.normal(size=(2, 40, 5)).astype(np.float32))
    monkeypatch.setattr(module, "GRIDS", {"small": {SIGMA: ("0.4", "0.8"), LAMBDA: ("0.5", "5")}})
    monkeypatch.setattr(module, "AUTO", {"sigma median": {SIGMA: "median"}})
    sweep_and_write([tmp_path / "pairs.npy"], ["small"], replace(BUDGET, seeds=2), tmp_path / "out", lambda *_: None)
    points = json.loads((tmp_path / "out" / JSON).read_text(encoding="utf-8"))["points"]
    assert len(points) == 5
    assert all(len(p["metrics"]["gap/cs"]) == 2 for p in points)
    gaps = {(p["settings"].get(SIGMA), p["settings"].get(LAMBDA)): p["metrics"]["gap/cs"][0] for p in points}
    assert gaps["0.4", "5"] != gaps["0.4", "0.5"]
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert "best of the grids" in page
    assert "sigma median" in page


def test_a_sweep_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, ran = tmp_path / "pairs.npy", tmp_path / "out", list[float]()
    np.save(data, np.random.default_rng(0).normal(size=(2, 40, 5)).astype(np.float32))
    monkeypatch.setattr(module, "GRIDS", {"small": {SIGMA: ("0.4", "0.8")}})
    monkeypatch.setattr(module, "AUTO", {})
    from csaligner.comparison.compare import measures

    points = 2 * 5  # sigmas x folds

    def noted(aligned: PairedFeatures) -> Any:
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append(1.0)
        return measures(aligned)

    def sweep_small(budget: Budget = BUDGET, to: Path = out) -> list[Any]:
        sweep_and_write([data], ["small"], budget, to, lambda *_: None)
        return list(json.loads((to / JSON).read_text(encoding="utf-8"))["points"])

    monkeypatch.setattr(module, "measures", noted)
    with pytest.raises(KeyboardInterrupt):
        sweep_small()
    kept = sorted((out / UNFINISHED).iterdir())
    assert len(kept) == 4
    kept[0].write_bytes(kept[0].read_bytes()[:-20])  # this one is computed again
    ran.append(0.0)
    again = sweep_small()
    assert len(ran) == 5 + points - 3
    assert not (out / UNFINISHED).exists()
    monkeypatch.setattr(module, "measures", measures)
    assert again == sweep_small(to=tmp_path / "undisturbed")


def test_a_sweep_with_other_settings_takes_nothing_of_what_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AUTO", {})
    rng = np.random.default_rng(0)

    def pairs(part: str) -> PairedFeatures:
        image, text = torch.from_numpy(rng.normal(size=(2, 20, 5)).astype(np.float32))
        return pair_features(image, text, [f"{part}{i}" for i in range(20)])

    first, second, test = pairs("a"), pairs("b"), pairs("c")
    fold = Fold("d", 0, ((first, second),), test)
    found = []
    for lr in (0.5, 0.25, 0.5):
        budget = replace(BUDGET, base=BUDGET.base.model_copy(update={"lr": lr}))
        (point,) = module.sweep([fold], {"small": {SIGMA: ("0.4",)}}, budget, keep=tmp_path)
        found.append(point.metrics["gap/cs"])
    assert found[0] == found[2] != found[1]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("command", [["compare", "--methods", "none,procrustes"], ["sweep", "--grids", "small"]])
def test_the_commands_print_their_table(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(module, "GRIDS", {"small": {SIGMA: ("0.4", "0.8")}})
    monkeypatch.setattr(module, "AUTO", {})
    pairs = tmp_path / "some-pairs.npy"
    np.save(pairs, np.random.default_rng(0).normal(size=(2, 40, 5)).astype(np.float32))
    ran = csaligner(
        *command, "--train-data", pairs, "--out", tmp_path / "out", "--epochs", 1, "--seeds", 1, "--jobs", 1, "-q"
    )
    assert ran.returncode == 0, ran.stderr
    assert "some-pairs" in ran.stdout
    rows = [line.split()[0] for line in ran.stdout.splitlines() if line.strip()]
    wanted = ["none", "procrustes"] if command[0] == "compare" else ["bandwidth", "bandwidth"]
    assert [row for row in rows if row in wanted] == wanted
