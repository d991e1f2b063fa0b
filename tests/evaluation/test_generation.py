"""Metrics of generated images: FID, KID, CMMD and text agreement."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from csaligner.checks import InputError
from csaligner.evaluation.generation import (
    Projection,
    cmmd,
    frechet_distance,
    generation_metrics,
    kernel_distance,
    text_agreement,
)


def samples(n: int, m: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g, dtype=torch.float64) @ torch.randn(d, d, generator=g, dtype=torch.float64)
    return x, torch.randn(m, d, generator=g, dtype=torch.float64) * 1.5 + 0.3


@pytest.mark.parametrize(("n", "m"), [(50, 40), (9, 8)])
def test_frechet_distance_is_that_of_scipy(n: int, m: int) -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="the independent square root of a matrix")
    x, y = samples(n, m, 6)
    s, t = np.cov(x.numpy().T), np.cov(y.numpy().T)
    gap = (x.mean(dim=0) - y.mean(dim=0)).numpy()
    wanted = gap @ gap + np.trace(s + t - 2 * np.real(linalg.sqrtm(s @ t)))
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_of_a_shift_is_its_square_and_of_a_sample_to_itself_zero() -> None:
    x, _ = samples(50, 1, 6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(24, rel=1e-9)


def test_too_few_rows_are_refused_unless_forced() -> None:
    x, y = samples(6, 50, 6)
    with pytest.raises(InputError, match=r"^real.*6.*6"):
        frechet_distance(x, y)
    assert frechet_distance(x, y, force=True) > 0
    project = Projection.fit(samples(50, 1, 6)[0], 3)
    assert project(x).shape == (6, 3)
    assert frechet_distance(project(x), project(y)) > 0


def test_a_projection_keeps_the_directions_of_most_variance() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 3.0, 0.2, 2.0])
    kept = Projection.fit(x, 2)(x)
    assert float(kept.var(dim=0).sum()) == pytest.approx(float(x[:, [1, 3]].var(dim=0).sum()), rel=1e-2)
    with pytest.raises(InputError, match=r"dims.*5.*4"):
        Projection.fit(x, 5)


def test_kernel_distance_is_the_double_loop() -> None:
    x, y = samples(7, 5, 3)

    def mean(p: torch.Tensor, q: torch.Tensor, skip: bool) -> float:
        values = [float(a @ b / 3 + 1) ** 3 for i, a in enumerate(p) for j, b in enumerate(q) if not (skip and i == j)]
        return sum(values) / len(values)

    assert kernel_distance(x, y) == pytest.approx(mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))


def test_cmmd_of_one_point_each_and_of_equal_samples() -> None:
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    assert cmmd(a, b) == pytest.approx(1000 * (2 - 2 * np.exp(-2 / 200)), rel=1e-9)
    x, _ = samples(20, 1, 3)
    assert cmmd(x, x * 2) == pytest.approx(0, abs=1e-9)


def test_text_agreement_counts_no_negative_cosine() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert text_agreement(x, torch.tensor([[2.0, 0.0], [-1.0, 0.0]])) == pytest.approx(50)
    with pytest.raises(InputError, match=r"2.*1"):
        text_agreement(x, x[:1])


def test_metrics_together_say_how_many_rows() -> None:
    x, y = samples(50, 40, 6)
    found = generation_metrics(x, y)
    assert (found["n_real"], found["n_generated"]) == (50, 40)
    assert found["fid"] == pytest.approx(frechet_distance(x, y))
    assert found["kid"] == pytest.approx(kernel_distance(x, y))
    assert found["cmmd"] == pytest.approx(cmmd(x, y))
