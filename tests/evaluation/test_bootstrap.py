"""Bootstrap confidence intervals over images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csaligner.evaluation import bootstrap
from csaligner.evaluation.bootstrap import draw_counts, percentile_interval, resampled_means, resampled_norms


def test_draws_n_of_n_images_by_the_seed() -> None:
    counts = draw_counts(50, seed=1, resamples=200)
    assert torch.equal(counts.sum(dim=1), torch.full((200,), 50.0, dtype=torch.float64))
    assert torch.equal(counts, draw_counts(50, seed=1, resamples=200))
    assert not torch.equal(counts, draw_counts(50, seed=2, resamples=200))
    assert counts.var(dim=1).mean().item() == pytest.approx(1, abs=0.05)  # Poisson-like: drawn with replacement


def test_width_of_a_share_is_that_of_the_binomial() -> None:
    n = 400
    values = (torch.arange(n) % 4 == 0).float()
    low, high = percentile_interval(resampled_means(values, torch.arange(n), draw_counts(n, 0)))
    half_width = 1.96 * (0.25 * 0.75 / n) ** 0.5
    assert (low, high) == pytest.approx((0.25 - half_width, 0.25 + half_width), abs=0.006)


def test_captions_of_one_image_are_drawn_together() -> None:
    n, m = 100, 5
    values = (torch.arange(n) % 2).float()
    counts = draw_counts(n, 0)
    one = resampled_means(values, torch.arange(n), counts)
    five = resampled_means(values.repeat(m), torch.arange(n).repeat(m), counts)
    torch.testing.assert_close(one, five)


def test_images_with_more_captions_weigh_more() -> None:
    counts = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]).double()
    means = resampled_means(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 1]), counts)
    assert means.tolist() == [1, 0.75, 0]


def test_length_of_a_mean_varies_around_the_length_measured_as_fresh_samples_do() -> None:
    n, d = 100, 64
    generator = torch.Generator().manual_seed(0)
    shift = torch.zeros(d, dtype=torch.float64)
    shift[0] = 1.0

    def sample() -> torch.Tensor:
        return shift + torch.randn(n, d, generator=generator, dtype=torch.float64)

    fresh = np.array([sample().mean(dim=0).norm() for _ in range(300)])
    measured = sample()
    resampled = resampled_norms(measured, draw_counts(n, 0))
    low, high = percentile_interval(resampled)
    assert low < measured.mean(dim=0).norm() < high
    assert resampled.mean().item() == pytest.approx(measured.mean(dim=0).norm().item(), abs=0.01)
    assert resampled.std().item() == pytest.approx(fresh.std(), rel=0.25)


def test_blocks_are_the_same_draws_and_give_the_same_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    n, generator = 60, torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (1000, n), generator=torch.Generator().manual_seed(7))
    whole = torch.stack([torch.bincount(row, minlength=n) for row in drawn]).double()
    owner = torch.cat([torch.arange(n), torch.randint(n, (40,), generator=generator)])
    values, vectors = torch.rand(100, generator=generator), torch.randn(n, 3, generator=generator).double()
    monkeypatch.setattr(bootstrap, "ENTRIES", 7 * n)
    assert len(list(bootstrap.count_blocks(n, 7))) == 143
    assert torch.equal(draw_counts(n, 7), whole)
    means, norms = bootstrap.resample({"a": (values, owner)}, vectors, 7)
    torch.testing.assert_close(means["a"], resampled_means(values, owner, whole))
    torch.testing.assert_close(norms, resampled_norms(vectors, whole))
