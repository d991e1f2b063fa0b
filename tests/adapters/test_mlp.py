"""MLP adapter: what training changes."""

from __future__ import annotations

import torch

from csaligner.estimator import CSAligner
from tests.support.features import make_pairs


def test_training_keeps_the_map_of_the_start_and_changes_the_rest() -> None:
    pairs = make_pairs(60, (6, 6), seed=1)
    before, after = (
        CSAligner(epochs=epochs, start={"kind": "moments"}, gate=False, batch_size=32, verbose=False)
        .fit_features(pairs)
        .model.image_adapter.state_dict()
        for epochs in (0, 5)
    )
    assert torch.equal(before["start.map"], after["start.map"])
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"start.mean", "start.offset", "blocks.0.3.weight"} <= changed


def test_training_from_random_weights_learns_the_map() -> None:
    pairs = make_pairs(60, (6, 6), seed=1)
    before, after = (
        CSAligner(epochs=epochs, start={"kind": "random"}, batch_size=32, verbose=False)
        .fit_features(pairs)
        .model.image_adapter.state_dict()
        for epochs in (0, 5)
    )
    assert not torch.equal(before["start.map"], after["start.map"])
