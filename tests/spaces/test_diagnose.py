"""Diagnosis of two spaces on data whose truth is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.spaces import Diagnosis, Space, diagnose


def cloud(n: int, d: int, seed: int) -> Tensor:
    scale = torch.arange(1, d + 1).float() ** -0.7
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale


def of(x: Tensor, y: Tensor, pairing: str = "none", **more: object) -> Diagnosis:
    return diagnose(Space.of("eeg", x), Space.of("image", y), pairing=pairing, **more)  # type: ignore[arg-type]


def turned(x: Tensor) -> Tensor:
    """Rotate the four leading directions."""
    rotation = torch.eye(x.shape[1])
    rotation[:4, :4] = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    return x @ rotation


def test_one_cloud_split_at_random_has_no_gap() -> None:
    found = [of(cloud(60, 8, seed)[:30], cloud(60, 8, seed)[30:], seed=seed).verdict for seed in range(100)]
    assert found.count("no_gap") >= 95


def test_a_pure_shift_needs_only_centring() -> None:
    x, y = torch.split(cloud(400, 32, 0), 200)
    found = of(x, y + 0.5)
    assert found.verdict == "shift"
    assert "mean shift suffices" in found.sentence
    assert "cannot be known without pairs" in found.sentence
    assert found.gap is not None
    assert found.gap.divergence.p < 0.01 < found.gap.centred_divergence.p
    assert all(b.tested.value > b.tested.high for b in found.gap.bias.values())


def test_a_pure_shift_of_pairs_needs_only_centring() -> None:
    x = cloud(200, 32, 0)
    found = of(x, x + 0.5 + 0.01 * torch.randn(200, 32, generator=torch.Generator().manual_seed(1)), "rows")
    assert found.verdict == "shift"
    assert found.matching is not None
    assert found.matching.found["centred"].value > 0.9


@pytest.mark.parametrize("paired", [False, True])
def test_a_shift_and_a_rotation_need_training(paired: bool) -> None:
    x, other = torch.split(cloud(400, 32, 0), 200)
    found = of(x, turned((x if paired else other) + 0.5), "rows" if paired else "none")
    assert found.verdict == "train"
    assert ("your 200 pairs" if paired else "pairs are needed") in found.sentence


def test_a_rotation_of_a_ball_is_found_by_its_pairs_alone() -> None:
    x = torch.randn(240, 16, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    assert of(x, x @ rotation).verdict == "no_gap"
    assert of(x, x @ rotation, "rows").verdict == "train"


def test_shuffled_pairs_share_no_meaning() -> None:
    x = cloud(200, 16, 0)
    found = of(x, x[torch.randperm(200, generator=torch.Generator().manual_seed(1))], "rows")
    assert found.verdict == "no_shared_meaning"
    assert "do not share meaning" in found.sentence


def test_different_dimensions() -> None:
    x = cloud(200, 16, 0)
    wide = x @ torch.randn(16, 24, generator=torch.Generator().manual_seed(1))
    assert of(x, wide).verdict == "unknown"
    found = of(x, wide, "rows")
    assert found.verdict == "train"
    assert found.gap is None
    assert "16" not in found.sentence


def test_the_condition_of_a_space_is_counted() -> None:
    x = cloud(100, 8, 0)
    x[3], x[4, 2], x[6] = 0.0, torch.nan, x[5]
    health = of(x, cloud(100, 8, 1)).health[0]
    assert (health.zero, health.non_finite, health.duplicates) == (1, 1, 1)
    assert not health.packed_bits
    assert not health.unit


def test_packed_bits_are_recognised() -> None:
    bits = torch.randint(0, 256, (200, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = of(bits, cloud(100, 16, 1))
    assert found.health[0].packed_bits
    assert "unpack" in found.sentence


def test_anisotropy_of_a_cone() -> None:
    health = of(cloud(200, 8, 0) * 0.1 + 1, cloud(200, 8, 0)).health
    assert health[0].anisotropy > 0.95
    assert abs(health[1].anisotropy) < 0.2


def test_errors_name_the_space() -> None:
    x = cloud(100, 8, 0)
    with pytest.raises(InputError, match="eeg"):
        of(torch.full((50, 8), torch.nan), x)
    with pytest.raises(InputError, match="usable"):
        of(x[:10], x)
    with pytest.raises(InputError, match="numbers are equal"):
        of(x, x[:50], "rows")
    with pytest.raises(InputError, match="two names"):
        diagnose(Space.of("a", x), Space.of("a", x))


def test_ids_pair_rows_in_any_order() -> None:
    x = cloud(200, 16, 0)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    found = diagnose(Space.of("old", x, list(range(200))), Space.of("new", turned(x)[order], order.tolist()))
    assert found.verdict == "train"
    assert found.pairs == 200


def test_the_map_of_the_diagnosis_is_chosen_among_the_candidates() -> None:
    """A rotation with little noise: the prior of the family finds two thirds of the pairs, another candidate all."""
    x = cloud(1200, 64, 3)
    rotation = torch.linalg.qr(cloud(64, 64, 4))[0]
    found = of(x, x @ rotation + 0.03 * cloud(1200, 64, 5) + 0.5, "rows")
    assert found.matching is not None
    assert found.matching.found["mapped"].value > 0.97
