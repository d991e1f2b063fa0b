"""The suite: all tables in one resumable run of one version of the code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csaligner.checks import InputError
from csaligner.comparison import suite as module
from csaligner.comparison import sweep
from csaligner.comparison.compare import Budget, measures
from csaligner.comparison.suite import JSON, PAGE, SWEEP_PAGE, Suite, run_suite
from csaligner.comparison.sweep import LAMBDA, SIGMA
from csaligner.config import AdapterConfig, TrainConfig
from tests.support.commands import csaligner
from tests.support.features import make_arrays

pytest.importorskip("optuna")
ADAPTER = AdapterConfig(hidden=8)
BASE = TrainConfig(epochs=1, batch_size=64, image_adapter=ADAPTER, text_adapter=ADAPTER)
BUDGET = Budget(BASE, trials=8, seeds=3, jobs=1, inner=1)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    paths = [tmp_path / "one.npy", tmp_path / "two.npy"]
    for seed, path in enumerate(paths):
        np.save(path, np.stack(make_arrays(40, (6, 6), seed=seed)))
    grids = {"bandwidth": {SIGMA: ("0.4", "0.8"), LAMBDA: ("0.5",)}}
    monkeypatch.setattr(module, "GRIDS", grids)
    monkeypatch.setattr(sweep, "GRIDS", grids)
    monkeypatch.setattr(sweep, "AUTO", {})
    return Suite(paths, BUDGET, tmp_path / "out", ["none", "moments", "infonce"], ["bandwidth"], paths[:1], 16)


def read(suite: Suite) -> Any:
    return json.loads((suite.out / JSON).read_text(encoding="utf-8"))


def test_one_run_ranks_every_method_on_all_data(made: Suite) -> None:
    run_suite(made, lambda *_: None)
    record = read(made)
    assert {d["folds"] for d in record["datasets"].values()} == {2}  # 8 test images each
    assert [len(rank["ranks"]) for rank in record["ranks"]] == [2, 2, 2]
    ordered = [rank["mean_rank"] for rank in record["ranks"]]
    assert ordered == sorted(ordered)
    assert {d["method"] for d in record["differences"]} <= {"none", "moments", "infonce"}
    rows = {(r["dataset"], r["method"]): r["metrics"] for r in record["results"]}
    assert len(rows) == 2 * 4  # infonce has a row of centred output
    assert max(len(values) for values in rows["one", "infonce"].values()) == 3
    assert len(record["trials"]) == 2 * 2 * 8
    assert set(record["settings"]["two"]) == {"moments"}
    assert [point["dataset"] for point in record["points"]] == ["one"] * 2
    assert all(len(values) == 3 for point in record["points"] for values in point["metrics"].values())
    page = (made.out / PAGE).read_text(encoding="utf-8")
    assert "Mean rank" in page
    assert (made.out / SWEEP_PAGE).exists()


def test_a_run_resumes_and_gives_the_results_of_an_undisturbed_one(
    made: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_suite(replace(made, out=made.out.with_name("undisturbed")), lambda *_: None)
    wanted, calls = read(replace(made, out=made.out.with_name("undisturbed"))), list[int]()

    def interrupted(aligned: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measures(aligned)

    monkeypatch.setattr(sweep, "measures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_suite(made, lambda *_: None)
    run_suite(made, lambda *_: None)
    assert len(calls) == 2 * 3 + 1
    assert read(made) == wanted


def test_other_code_does_not_resume_unless_told(made: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(made, methods=["none"], grids=[])
    run_suite(few, lambda *_: None)
    monkeypatch.setattr(module, "code_digest", lambda: "0" * 16)
    with pytest.raises(InputError, match="other-commit"):
        run_suite(few, lambda *_: None)
    run_suite(replace(few, other_commit=True), lambda *_: None)
    assert len(read(few)["commits"]) == 2


@pytest.mark.parametrize("budget", [replace(BUDGET, trials=7), replace(BUDGET, seeds=2)])
def test_a_small_budget_is_refused(made: Suite, budget: Budget) -> None:
    with pytest.raises(InputError, match="trials"):
        run_suite(replace(made, budget=budget), lambda *_: None)
    assert not made.out.exists()


def test_settings_of_an_earlier_comparison_are_refused(made: Suite) -> None:
    with pytest.raises(InputError, match="settings"):
        run_suite(replace(made, budget=replace(BUDGET, settings={"one/l2/0": {"weight": 1.0}})), lambda *_: None)


def test_the_command_writes_the_files(made: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--trials", 8, "--inner", 1, "--epochs", 1, "--jobs", 1, "--test-images", 8, "--methods", "none,cca"]
    data = [word for path in made.data for word in ("--train-data", path)]
    ran = csaligner("compare", "--suite", *data, "--grids", "none", "--out", made.out, *words, "-q")
    assert ran.returncode == 0, ran.stderr
    assert "suite.json" in ran.stderr
    assert {rank["method"] for rank in read(made)["ranks"]} == {"none", "cca"}
