"""benchmarks/learning_curves.py: noise, measures and paired differences."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from csaligner.evaluation.evaluate import evaluate
from tests.support.features import make_pairs


@pytest.fixture(scope="module")
def curves() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        return importlib.import_module("learning_curves")


@pytest.mark.parametrize(("percent", "moved"), [(0, 0), (10, 4), (50, 20)])
def test_noise_exchanges_this_share_of_the_texts(curves: Any, percent: int, moved: int) -> None:
    train = make_pairs(40, (6, 6))
    noisy = curves.with_noise(train, percent, 0)
    changed = (noisy.text != train.text).any(dim=1)
    assert int(changed.sum()) == moved
    assert torch.equal(noisy.text.sort(dim=0).values, train.text.sort(dim=0).values)
    assert torch.equal(noisy.image, train.image)


def test_the_measures_are_those_of_evaluate_and_their_differences_are_paired(curves: Any) -> None:
    rows = make_pairs(40, (6, 6))
    pairs = replace(rows, image=normalize(rows.image, dim=1), text=normalize(rows.text, dim=1))
    found = curves.measure(pairs, 0)
    metrics = evaluate(pairs, intervals=False).metrics
    for key, name in (("score", "alignment_score"), ("recall", "mean_recall@1"), ("gap", "gap/centroid")):
        assert found["means"][key] == pytest.approx(metrics[name], abs=1e-5)
    worse = {
        "means": {k: v - 0.1 for k, v in found["means"].items()},
        "resamples": {k: [v - 0.1 for v in values] for k, values in found["resamples"].items()},
    }
    split = {"InfoNCE": worse, "chosen start": found, "other": found}
    records = {r["method"]: r for r in curves.summary("pairs", 40, "made", [split, split])}
    assert records["other"]["minus start"]["score"] == [0, 0, 0]
    for key in curves.METRICS:  # a constant difference has no spread, because both methods see the same rows
        assert records["other"]["minus InfoNCE"][key] == pytest.approx([0.1, 0.1, 0.1], abs=1e-4)
