"""Method comparison: folds, tuning without the test fold, equal budgets, reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csaligner.checks import InputError
from csaligner.comparison.compare import UNSELECTED, Budget, averages, compare
from csaligner.comparison.folds import Fold, open_folds
from csaligner.comparison.methods import FREE, TRAINED, Trained
from csaligner.comparison.run import JSON, PAGE, compare_and_write, read_settings
from csaligner.config import AdapterConfig, TrainConfig, load_config
from csaligner.types import PairedFeatures
from tests.support.features import make_arrays, make_pairs

ADAPTER = AdapterConfig(hidden=8)
BUDGET = Budget(
    TrainConfig(epochs=3, batch_size=32, image_adapter=ADAPTER, text_adapter=ADAPTER), trials=2, seeds=2, jobs=1
)


def fold(dims: tuple[int, int] = (6, 6), test_seed: int = 3) -> Fold:
    train, val, test = (make_pairs(n, dims, seed=seed) for n, seed in ((60, 1), (20, 2), (20, test_seed)))
    return Fold("made", 0, ((train, val),), test)


def test_folds_of_an_array_are_the_stated_ones_and_never_mix(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32)
    np.save(tmp_path / "pairs.npy", array)
    folds = open_folds(tmp_path / "pairs.npy")
    order = np.random.RandomState(0).permutation(40)
    assert len(folds) == 5
    for number, f in enumerate(folds):
        torch.testing.assert_close(f.test.image, torch.from_numpy(array[0][order[number::5]]))
        validated: set[tuple[float, ...]] = set()
        for train, val in f.splits:
            rows = [{tuple(row) for row in part.text.tolist()} for part in (train, val, f.test)]
            assert sum(map(len, rows)) == 40 == len(set.union(*rows))
            assert len(rows[1]) in {6, 7}
            assert not validated & rows[1]
            validated |= rows[1]
        assert len(validated) == 32


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 40, 3), (40, 3)])
def test_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "pairs.npy", np.zeros(shape))
    with pytest.raises(InputError, match=r"\(2, N, d\)"):
        open_folds(tmp_path / "pairs.npy")


def test_settings_do_not_depend_on_the_test_part() -> None:
    chosen, measured = [], []
    for test_seed in (3, 4):
        result = compare([fold(test_seed=test_seed)], ["l2"], BUDGET)
        chosen.append([dict(m.settings) for m in result.measured])
        measured.append([m.metrics["gap/centroid"] for m in result.measured])
    assert chosen[0] == chosen[1]
    assert set(chosen[0][0]) == {"logit_scale", "weight"}
    assert measured[0] != measured[1]


def test_the_best_trial_is_taken_and_every_tuned_method_has_as_many() -> None:
    result = compare([fold()], ["infonce-scale", "mmd", "infonce"], BUDGET)
    for name in ("infonce-scale", "mmd"):
        trials = [t for t in result.trials if t["method"] == name]
        assert len(trials) == BUDGET.trials
        best = max(trials, key=lambda t: float(t["score"]))
        for m in result.measured:
            if m.method == name:
                assert dict(m.settings) == {k: best[k] for k in m.settings}
    assert not any(t["method"] == "infonce" for t in result.trials)


def test_a_method_of_another_package_runs_under_the_same_budget(tmp_path: Path, registries: None) -> None:
    TRAINED.register("theirs", Trained({"info_nce": 1.0, "mmd": 2.0}, "a line about <theirs>"))
    np.save(tmp_path / "pairs.npy", np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32))
    budget, out = replace(BUDGET, trials=0, seeds=1), tmp_path / "out"
    result = compare_and_write([tmp_path / "pairs.npy"], ["theirs"], budget, out, lambda *done: None)
    rows = [(name, number) for number in range(5) for name in ("theirs", "theirs, then centred")]
    assert [(m.method, m.fold) for m in result.measured] == rows
    assert "a line about &lt;theirs&gt;" in (out / PAGE).read_text(encoding="utf-8")


def test_methods_without_meaning_are_left_out_and_named() -> None:
    result = compare([fold(dims=(6, 5))], ["none", "procrustes", "cca"], replace(BUDGET, seeds=1))
    assert {m.method for m in result.measured} == {"cca"}
    assert set(result.left_out["made"]) == {"none", "procrustes"}
    result = compare([fold()], ["cs-aligner-token"], replace(BUDGET, seeds=1))
    assert result.left_out == {"made": {"cs-aligner-token": "needs tokens; embed with --tokens"}}


def test_an_unknown_method_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="infonce"):
        compare([fold()], ["infonec"], BUDGET)


@pytest.mark.parametrize("name", list(TRAINED))
def test_every_method_has_a_config(name: str) -> None:
    method = TRAINED[name]
    config = method.config(TrainConfig(), {key: low for key, (low, _) in method.space().items()}, seed=7)
    assert config.seed == 7
    if method.weight:
        assert config.objective.terms[method.weight[0]] == method.weight[1]
    if method.tunes_fraction:
        assert config.objective.balance.fraction == method.space()["fraction"][0]
    assert config.objective.learn_logit_scale == (not method.tunes_scale)


def test_objectives_start_from_random_weights_if_the_base_does() -> None:
    random = load_config(TrainConfig, None, [*UNSELECTED, "start.kind=random"])
    assert TRAINED["infonce"].config(random, {}, 0).start.kind == "random"
    assert TRAINED["cs-aligner-default"].config(random, {}, 0).objective.bandwidth == random.objective.bandwidth
    assert TRAINED["defaults"].config(random, {}, 0).start.kind == "chosen"


def test_averages_are_over_folds_for_each_seed() -> None:
    result = compare([fold(), replace(fold(test_seed=4), number=1)], ["closed-form start"], BUDGET)
    values = [m.metrics["gap/centroid"] for m in result.measured if m.seed == 0]
    assert len(values) == 2
    got = averages(result.measured, "gap/centroid")["made", "closed-form start"]
    assert got == pytest.approx([sum(values) / 2] * 2)


def test_both_files_are_written(tmp_path: Path) -> None:
    array = np.stack(make_arrays(40, (6, 6), seed=5))
    np.save(tmp_path / "pairs.npy", array)
    budget = replace(BUDGET, trials=0, seeds=2)
    compare_and_write(
        [tmp_path / "pairs.npy"], ["none", "mean-centring", "infonce"], budget, tmp_path / "out", lambda *_: None
    )
    record = json.loads((tmp_path / "out" / JSON).read_text(encoding="utf-8"))
    methods = {"none", "mean-centring", "infonce", "infonce, then centred"}
    assert {m["method"] for m in record["measured"]} == methods
    assert len(record["measured"]) == 4 * 5 * 2
    assert record["best_free"]["pairs"] in {"none", "mean-centring"}
    others = {d["method"] for d in record["differences"] if d["other"] == record["best_free"]["pairs"]}
    assert others == methods - {record["best_free"]["pairs"]}
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert "mean-centring" in page
    assert "Score minus infonce" in page
    assert "http" not in page.replace("http-equiv", "")


def test_settings_of_an_earlier_comparison_are_not_tuned_again(tmp_path: Path) -> None:
    data = tmp_path / "pairs.npy"
    np.save(data, np.stack(make_arrays(40, (6, 6), seed=5)))
    budget = replace(BUDGET, trials=1, seeds=1)
    first = compare_and_write([data], ["l2"], budget, tmp_path / "one", lambda *_: None)
    known = replace(budget, trials=7, settings=read_settings(tmp_path / "one" / JSON))
    again = compare_and_write([data], ["l2"], known, tmp_path / "two", lambda *_: None)
    assert again.trials == []
    for one, two in zip(first.measured, again.measured, strict=True):
        assert dict(two.settings) == pytest.approx(dict(one.settings), rel=1e-5)
        assert two.metrics["gap/cs"] == pytest.approx(one.metrics["gap/cs"], abs=1e-3)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(InputError, match="compare"):
        read_settings(tmp_path / "bad.json")


def test_several_processes_give_the_numbers_of_one() -> None:
    one, two = (compare([fold()], ["cca", "infonce"], replace(BUDGET, seeds=1, jobs=jobs)) for jobs in (1, 2))
    assert [m.method for m in two.measured] == ["cca", "infonce", "infonce, then centred"]
    for a, b in zip(one.measured, two.measured, strict=True):
        assert dict(a.metrics) == pytest.approx(dict(b.metrics), abs=1e-4, nan_ok=True)


def test_free_and_trained_names_do_not_clash() -> None:
    assert not set(FREE) & set(TRAINED)


def test_what_is_done_is_not_done_again_and_a_damaged_record_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from csaligner.comparison import compare as module

    names, budget, ran = ["none", "cca"], replace(BUDGET, seeds=1), list[int]()
    measures = module.measures

    def noted(aligned: PairedFeatures) -> Any:
        ran.append(1)
        return measures(aligned)

    monkeypatch.setattr(module, "measures", noted)
    first = compare([fold()], names[:1], budget, keep=tmp_path)
    both = compare([fold()], names, budget, keep=tmp_path)
    assert len(ran) == 2
    assert both.measured[0] == first.measured[0]
    compare([fold(test_seed=9)], names[:1], budget, keep=tmp_path)  # other data
    assert len(ran) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    assert compare([fold()], names[:1], budget, keep=tmp_path).measured[0].metrics == first.measured[0].metrics
    assert len(ran) == 4
