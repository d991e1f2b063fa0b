"""The choice of the untrained alignment by folds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csaligner import CSAligner, train, write_store
from csaligner.adapters.untrained import PairMoments
from csaligner.config import TrainConfig, build_config
from csaligner.paired_features import rows_of
from csaligner.selection.folds import group_folds
from csaligner.selection.score import score_and_recall, score_per_image
from csaligner.selection.start import choose_start
from csaligner.types import EncoderInfo, PairedFeatures, Split

CHOSEN = build_config(TrainConfig, {"start": {"kind": "chosen"}})


def rotated(n: int, noise: float, seed: int = 0) -> PairedFeatures:
    """Texts are images in other coordinates: covariances cannot find the rotation, correlations can."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(n, 16, generator=g)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=g))[0]
    text = image @ turn + noise * torch.randn(n, 16, generator=g)
    return PairedFeatures(image, text, torch.arange(n), tuple(map(str, range(n))))


def test_correlations_are_chosen_where_they_alone_find_the_pairs() -> None:
    choice = choose_start(rotated(300, 0.1), CHOSEN)
    assert choice.label in ("mix 0.75", "mix 1")
    assert choice.gains[choice.label].mean > choice.gains[choice.label].error
    assert choice.record()["kind"] == choice.label
    assert choice.folds == 5


@pytest.mark.parametrize("rows", [12, 60, 300])
@pytest.mark.parametrize("more", [0, 30])
@pytest.mark.parametrize(
    "settings", [{}, {"image_adapter": "identity"}, {"text_adapter": "identity"}, {"dim": 8}], ids=str
)
def test_folds_in_float32_score_as_in_float64(
    rows: int, more: int, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every family, with fewer rows than dimensions and with more, with and without unpaired rows."""
    features, config = rotated(rows, 0.4), build_config(TrainConfig, settings)
    unpaired = (rotated(more, 0.4, 1).image, None) if more else (None, None)
    found = choose_start(features, config, unpaired=unpaired)
    monkeypatch.setattr(PairMoments, "in_single", lambda moments: moments)
    wanted = choose_start(features, config, unpaired=unpaired)
    assert found.label == wanted.label
    for label, gain in wanted.gains.items():
        assert found.gains[label].mean == pytest.approx(gain.mean, abs=0.1)


def test_noise_keeps_the_prior() -> None:
    g = torch.Generator().manual_seed(0)
    noise = PairedFeatures(
        torch.randn(40, 16, generator=g), torch.randn(40, 16, generator=g), torch.arange(40), tuple(map(str, range(40)))
    )
    choice = choose_start(noise, CHOSEN)
    gain = choice.gains[choice.label]
    assert choice.label == choice.prior or gain.mean > gain.error


def test_three_images_are_too_few_to_hold_any_out() -> None:
    choice = choose_start(rotated(3, 0.1), CHOSEN)
    assert choice.label == choice.prior
    assert choice.gains == {}


def test_folds_keep_groups_whole_and_cover_every_image() -> None:
    groups = [f"g{i % 7}" for i in range(50)]
    folds = group_folds(50, 3, 0, groups)
    assert sorted(torch.cat(folds).tolist()) == list(range(50))
    homes = [{groups[i] for i in fold.tolist()} for fold in folds]
    assert not homes[0] & homes[1]
    assert not homes[0] & homes[2]
    assert not homes[1] & homes[2]


def test_rows_of_keeps_every_caption_of_an_image() -> None:
    features = PairedFeatures(
        torch.arange(6.0).view(3, 2), torch.arange(10.0).view(5, 2), torch.tensor([0, 0, 1, 2, 2]), ("a", "b", "c")
    )
    part = rows_of(features, torch.tensor([2, 0]))
    assert part.image_ids == ("c", "a")
    assert part.text.tolist() == [[0, 1], [2, 3], [6, 7], [8, 9]]
    assert part.text_to_image.tolist() == [1, 1, 0, 0]


def test_the_score_of_a_perfect_and_of_a_collapsed_alignment() -> None:
    eye = torch.eye(12)
    perfect = PairedFeatures(eye, eye, torch.arange(12), tuple(map(str, range(12))))
    assert score_per_image(perfect).tolist() == pytest.approx([100.0] * 12)
    one = torch.ones(12, 12)
    collapsed = PairedFeatures(one, one, torch.arange(12), tuple(map(str, range(12))))
    assert float(score_per_image(collapsed).mean()) < 10


@pytest.mark.parametrize("adapter", ["standardise", "centre"])
def test_standardised_features_keep_the_closed_form_start(adapter: str) -> None:
    config = build_config(TrainConfig, {"image_adapter": adapter, "epochs": 2})
    pairs = rotated(60, 0.1)
    aligner = CSAligner(config, verbose=False).fit_features(pairs)
    plain = CSAligner(config, start={"kind": "auto"}, gate=False, verbose=False).fit_features(pairs)
    np.testing.assert_array_equal(aligner.transform_text(pairs.text), plain.transform_text(pairs.text))
    assert aligner.selection_ is not None
    assert adapter in aligner.selection_.line


def test_few_pairs_of_other_dimensions_have_nothing_to_choose() -> None:
    g = torch.Generator().manual_seed(0)
    image, text = torch.randn(99, 8, generator=g), torch.randn(99, 6, generator=g)
    pairs = PairedFeatures(image, text, torch.arange(99), tuple(map(str, range(99))))
    choice = choose_start(pairs, CHOSEN)
    assert choice.label == "cca 12, 1"
    assert choice.gains == {}


def test_captions_alone_can_be_preferred() -> None:
    pairs = rotated(40, 1.0)
    both, captions = score_per_image(pairs), score_per_image(pairs, "captions")
    turned = PairedFeatures(pairs.text, pairs.image, pairs.text_to_image, pairs.image_ids)
    torch.testing.assert_close(2 * both, captions + score_per_image(turned, "captions"))


@pytest.mark.parametrize("name", ["linear", "mlp", "prior"])
def test_random_weights_are_trained_without_a_gate(name: str) -> None:
    pairs, adapter = rotated(60, 0.1), {"name": name, "hidden": 32}
    given: dict[str, Any] = {"start": {"kind": "random"}, "image_adapter": adapter, "text_adapter": adapter}
    untrained = CSAligner(epochs=0, verbose=False, **given).fit_features(pairs)
    assert untrained.score(pairs.image, pairs.text) < 0.3
    trained = CSAligner(epochs=100, lr=1e-2, verbose=False, **given).fit_features(pairs)
    assert trained.score(pairs.image, pairs.text) > 0.5
    before, after = untrained.model.state_dict(), trained.model.state_dict()
    unchanged = [key for key in before if torch.equal(before[key], after[key])]
    assert unchanged == [] or name == "prior"  # a prior has layers for hidden states, which are not given here


def test_train_records_the_choice(tmp_path: Path) -> None:
    pairs = rotated(60, 0.1)
    splits: dict[str, Split] = {i: "val" if int(i) % 6 == 0 else "train" for i in pairs.image_ids}
    infos = EncoderInfo("a", "1", "image", 16, {}), EncoderInfo("b", "1", "text", 16, {})
    store = write_store(tmp_path / "store", pairs, infos, splits=splits)
    run = train(store, build_config(TrainConfig, {"epochs": 0}), tmp_path / "run")
    choice = json.loads((tmp_path / "run" / "selection.json").read_text(encoding="utf-8"))["start"]
    inside = store.features("train")
    wanted = choose_start(inside, CHOSEN)
    assert choice["kind"] == wanted.label
    assert wanted.starts is not None
    expected = torch.nn.functional.normalize(wanted.starts[0](inside.image), dim=1)
    torch.testing.assert_close(run.model.encode_image(inside.image), expected)


@pytest.mark.parametrize("n", [2, 9, 40])
@pytest.mark.parametrize("tied", [False, True])
def test_the_order_of_the_captions_does_not_change_the_score(n: int, tied: bool) -> None:
    g = torch.Generator().manual_seed(n)
    z = torch.randn(n, 6, generator=g)
    image, text = (z + torch.randn(n, 6, generator=g) for _ in range(2))
    if tied:
        image, text = image.sign(), text.sign()
    names = tuple(map(str, range(n)))
    found, recall = score_and_recall(PairedFeatures(image, text, torch.arange(n), names))
    order = torch.arange(n).flip(0)
    wanted, searched = score_and_recall(PairedFeatures(image, text[order], order, names))
    torch.testing.assert_close(found, wanted)
    assert recall == pytest.approx(searched)
