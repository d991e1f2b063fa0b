"""The gate: training is kept only where held-out pairs prove it."""

from __future__ import annotations

import pytest
import torch

from csaligner import CSAligner
from csaligner.adapters.aligner import Aligner, align
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.selection.folds import Difference
from csaligner.selection.gate import LEAST_IMAGES, GateChoice, gate_by_folds, gate_by_validation, set_scale, snapshot
from csaligner.selection.selection import Selection
from csaligner.types import PairedFeatures

CONFIG = build_config(TrainConfig, {"start": {"kind": "identity"}, "image_adapter": "linear", "text_adapter": "linear"})


def rotated(n: int, seed: int = 0) -> tuple[PairedFeatures, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(n, 8, generator=g)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    text = image @ turn + 0.05 * torch.randn(n, 8, generator=g)
    return PairedFeatures(image, text, torch.arange(n), tuple(map(str, range(n)))), turn


def start(pairs: PairedFeatures) -> Aligner:
    return Aligner.fit_start(pairs, CONFIG)


def test_a_real_gain_is_accepted() -> None:
    pairs, turn = rotated(LEAST_IMAGES)

    def learn(model: Aligner, _: PairedFeatures) -> None:
        model.text_adapter.map.data = turn.T.contiguous()

    choice = gate_by_folds(pairs, start, learn)
    assert choice.scale == 1.0
    assert choice.best is not None
    assert choice.best.mean > 10
    assert choice.images == LEAST_IMAGES


def test_harm_is_rejected_after_one_fold() -> None:
    pairs, turn = rotated(LEAST_IMAGES)
    trained = []

    def harm(model: Aligner, _: PairedFeatures) -> None:
        trained.append(1)
        model.text_adapter.map.data = torch.zeros(8, 8)

    def good(part: PairedFeatures) -> Aligner:
        model = start(part)
        model.text_adapter.map.data = turn.T.contiguous()
        return model

    choice = gate_by_folds(pairs, good, harm)
    assert choice.scale == 0.0
    assert len(trained) == 1


def test_few_pairs_are_not_trained_on() -> None:
    pairs, _ = rotated(LEAST_IMAGES - 1)

    def never(model: Aligner, _: PairedFeatures) -> None:
        raise AssertionError("trained")

    assert gate_by_folds(pairs, start, never).scale == 0.0


def test_scales_move_between_the_start_and_the_trained_model() -> None:
    pairs, _ = rotated(40)
    fixed = build_config(TrainConfig, {"start": {"kind": "auto"}, "gate": False, "lr": 0.05})
    aligner = CSAligner(fixed, epochs=2, verbose=False).fit_features(pairs).model
    before, after = snapshot(Aligner.fit_start(pairs, fixed)), snapshot(aligner)
    untrained = align(CSAligner(fixed, epochs=0, verbose=False).fit_features(pairs).model, pairs).text
    trained = align(aligner, pairs).text
    set_scale(aligner, before, 0.0)
    torch.testing.assert_close(align(aligner, pairs).text, untrained)
    aligner.load_state_dict(after)
    set_scale(aligner, before, 1.0)
    torch.testing.assert_close(align(aligner, pairs).text, trained)
    assert not torch.allclose(trained, untrained)


def test_validation_pairs_can_decide() -> None:
    pairs, turn = rotated(60)
    model = start(pairs)
    before = snapshot(model)
    model.text_adapter.map.data = turn.T.contiguous()
    choice = gate_by_validation(model, before, rotated(60)[0])
    assert choice.part == "validation"
    assert choice.scale > 0
    assert choice.gains[1.0].mean > 10
    assert choice.held_out is not None
    assert choice.held_out.images == 60
    assert choice.held_out.found > choice.held_out.others["untrained"]


def test_recall_on_held_out_pairs_is_recorded() -> None:
    pairs, turn = rotated(LEAST_IMAGES)

    def train(model: Aligner, _: PairedFeatures) -> None:
        model.text_adapter.map.data = turn.T.contiguous()

    choice = gate_by_folds(pairs, start, train)
    assert choice.held_out is not None
    assert choice.held_out.images == LEAST_IMAGES // 3  # the smallest of three folds
    assert choice.held_out.found == choice.recalls[choice.scale] > choice.held_out.others["untrained"]
    again = GateChoice.of_record(choice.record())
    assert again.held_out is not None
    assert again.held_out.line == choice.held_out.line
    older = {key: value for key, value in choice.record().items() if key not in {"recalls", "searched"}}
    assert GateChoice.of_record(older).held_out is None


def test_the_estimator_records_what_was_chosen() -> None:
    pairs, _ = rotated(LEAST_IMAGES)
    aligner = CSAligner(epochs=2, verbose=False).fit(pairs.image, pairs.text)
    assert aligner.selection_ is not None
    record = aligner.selection_.record()
    assert set(record) == {"start", "gate", "note", "line"}
    assert "held-out" in aligner.selection_.line
    few = CSAligner(verbose=False).fit(pairs.image[:50], pairs.text[:50])
    assert few.selection_ is not None
    assert few.selection_.gate is not None
    assert few.selection_.gate.scale == 0.0


def test_groups_must_fit() -> None:
    pairs, _ = rotated(20)
    with pytest.raises(InputError, match="groups"):
        CSAligner(gate=True, verbose=False).fit(pairs.image, pairs.text, groups=["a"])


def test_scale_0_restores_a_start_whose_residual_block_is_in_use() -> None:
    torch.manual_seed(0)
    pairs = PairedFeatures(torch.randn(20, 6), torch.randn(20, 6), torch.arange(20), tuple(map(str, range(20))))
    model = Aligner.fit_start(pairs, TrainConfig())
    for value in model.parameters():
        torch.nn.init.normal_(value.data)
    before, wanted = snapshot(model), model.encode_image(pairs.image)
    for value in model.parameters():
        torch.nn.init.normal_(value.data)
    set_scale(model, before, 0.0)
    torch.testing.assert_close(model.encode_image(pairs.image), wanted)


def test_the_line_says_which_images_were_held_out() -> None:
    gains = {1.0: Difference(3.0, 0.5)}
    for part in ("held-out training", "validation"):
        gate = GateChoice(1.0, gains, 103, 0.0, {0.0: 0.5, 1.0: 0.6}, 103, part)
        again = GateChoice.of_record(gate.record())
        assert f"on 103 {part} images" in Selection(None, again).line
        assert again.held_out is not None
        assert f"103 {part} images" in again.held_out.line
