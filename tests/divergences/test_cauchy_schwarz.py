"""Cauchy-Schwarz divergence: closed forms, invariances, weights, precision and errors."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from csaligner.checks import InputError
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.ops import reference, tiles
from csaligner.ops.kernels import Gaussian

IMPLEMENTATIONS = ["reference", "dense", "tiled"]
seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 9)
sigmas = st.floats(0.05, 20.0)


def cloud(rows: int, dim: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: float, b: float, tolerance: float = 1e-10) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(seed=seeds, sigma=sigmas)
@settings(max_examples=20, deadline=None)
def test_one_point_each(impl: str, seed: int, sigma: float) -> None:
    x, y = cloud(1, seed=seed), cloud(1, seed=seed + 1)
    value = cauchy_schwarz_divergence(x, y, bandwidth=sigma, impl=impl).item()
    assert close(value, (x - y).square().sum().item() / sigma**2)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(seed=seeds, n=sizes, m=sizes, sigma=sigmas)
@settings(max_examples=25, deadline=None)
def test_invariances(impl: str, seed: int, n: int, m: int, sigma: float) -> None:
    x, y = cloud(n, seed=seed), cloud(m, seed=seed + 1)
    rotation, _ = torch.linalg.qr(cloud(3, seed=seed + 2))
    generator = torch.Generator().manual_seed(seed)
    value = cauchy_schwarz_divergence(x, y, bandwidth=sigma, impl=impl).item()
    same = [
        (y, x, sigma),
        (x[torch.randperm(n, generator=generator)], y[torch.randperm(m, generator=generator)], sigma),
        (x @ rotation + 5, y @ rotation + 5, sigma),
        (3 * x, 3 * y, 3 * sigma),
        (torch.cat([x, x]), y, sigma),
    ]
    for a, b, s in same:
        assert close(value, cauchy_schwarz_divergence(a, b, bandwidth=s, impl=impl).item(), 1e-9)
    assert value >= -1e-12
    assert abs(cauchy_schwarz_divergence(x, x.clone(), bandwidth=sigma, impl=impl).item()) < 1e-9


def test_it_grows_as_the_clouds_part() -> None:
    x, y = cloud(20), cloud(20, seed=1)
    values = [cauchy_schwarz_divergence(x, y + shift, bandwidth=1.0).item() for shift in (0.0, 1.0, 2.0, 4.0)]
    assert values == sorted(values)
    assert values[-1] > 10 * values[0]


def gauss_hermite(mean: Tensor, covariance: Tensor, nodes: int = 40) -> tuple[Tensor, Tensor]:
    """Return Gauss-Hermite points and weights for integrals over N(mean, covariance) in two dimensions."""
    points, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(nodes))
    grid = torch.cartesian_prod(points, points)
    return mean + grid @ torch.linalg.cholesky(covariance).T, torch.outer(weights, weights).flatten()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gaussians_closed_form(impl: str) -> None:
    m1, m2 = torch.tensor([0.3, -0.2]).double(), torch.tensor([-0.5, 0.4]).double()
    s1, s2 = (
        torch.tensor([[0.5, 0.2], [0.2, 0.4]]).double(),
        torch.tensor([[0.3, -0.1], [-0.1, 0.6]]).double(),
    )
    sigma, eye, d = 0.9, torch.eye(2).double(), m1 - m2
    v = sigma**2
    wanted = (
        -0.5 * torch.logdet(eye + 2 * s1 / v)
        - 0.5 * torch.logdet(eye + 2 * s2 / v)
        + torch.logdet(eye + (s1 + s2) / v)
        + d @ torch.linalg.solve(s1 + s2 + v * eye, d)
    )
    (x, a), (y, b) = gauss_hermite(m1, s1), gauss_hermite(m2, s2)
    value = cauchy_schwarz_divergence(x, y, bandwidth=sigma, weights_x=a, weights_y=b, impl=impl)
    torch.testing.assert_close(value, wanted, atol=1e-9, rtol=0)


def test_without_the_diagonal_it_would_be_no_divergence() -> None:
    x = cloud(4, seed=3)
    kernel = Gaussian(0.3)
    off = reference.log_kernel_mean(x, None, kernel, diagonal=False)
    on = reference.log_kernel_mean(x, x, kernel)
    assert (2 * off - 2 * on).item() < -0.1
    assert abs(cauchy_schwarz_divergence(x, x, bandwidth=0.3).item()) < 1e-12


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["zero", "mask"])
def test_excluded_rows_have_no_influence_to_the_last_bit(impl: str, kind: str) -> None:
    x, y = cloud(9).float(), cloud(7, seed=1).float()
    padded = torch.cat([x[:4], 1e6 * torch.ones(3, 3), x[4:]])
    counts = torch.tensor([1.0] * 4 + [0.0] * 3 + [1.0] * 5)
    weights = counts if kind == "zero" else counts.bool()
    leaf, bare = padded.requires_grad_(), x.clone().requires_grad_()
    value = cauchy_schwarz_divergence(leaf, y, weights_x=weights, impl=impl)
    wanted = cauchy_schwarz_divergence(bare, y, impl=impl)
    assert value.item() == wanted.item()
    (grad,), (wanted_grad,) = torch.autograd.grad(value, leaf), torch.autograd.grad(wanted, bare)
    assert torch.equal(grad[counts.bool()], wanted_grad)
    assert not grad[~counts.bool()].any()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_whole_weight_is_a_repetition(impl: str) -> None:
    x, y = cloud(3), cloud(4, seed=1)
    weighted = cauchy_schwarz_divergence(x, y, weights_x=[1, 2, 3], impl=impl).item()
    repeated = cauchy_schwarz_divergence(x[[0, 1, 1, 2, 2, 2]], y, impl=impl).item()
    assert close(weighted, repeated)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_far_clouds_and_narrow_kernels_keep_a_finite_value_and_a_useful_gradient(
    impl: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "CPU_BLOCK", 4)
    for sigma, gap in ((1.0, 1000.0), (0.02, 20.0), (0.02, 1.0)):
        x = (sigma * cloud(6)).to(dtype).requires_grad_()
        y = (sigma * cloud(5, seed=1) + gap / 3**0.5).to(dtype).requires_grad_()
        value = cauchy_schwarz_divergence(x, y, bandwidth=sigma, impl=impl)
        truth = cauchy_schwarz_divergence(x.double(), y.double(), bandwidth=sigma, impl="reference")
        assert math.isclose(value.item(), truth.item(), rel_tol=1e-5)
        (grad,) = torch.autograd.grad(value, x)
        assert torch.isfinite(grad).all()
        # Descending moves the cloud towards the other: the summed gradient points away from it.
        direction = (x - y.mean(dim=0)).detach().double().mean(dim=0)
        assert torch.dot(grad.double().sum(dim=0), direction).item() > 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_duplicates_and_coinciding_clouds(impl: str) -> None:
    x = torch.ones(5, 3).requires_grad_()
    value = cauchy_schwarz_divergence(x, torch.ones(4, 3), impl=impl)
    assert value.item() == 0
    (grad,) = torch.autograd.grad(value, x)
    assert grad.abs().max().item() < 1e-6


def shared_features() -> tuple[Tensor, Tensor]:
    root = os.environ.get("CSALIGNER_SHARED") or Path(__file__).parents[3] / "shared"
    file = Path(root) / "data" / "clip_coco_500.npy"
    if not file.exists():
        pytest.skip(f"no {file.name}: set CSALIGNER_SHARED to the folder that holds data/{file.name}")
    image, text = torch.from_numpy(np.load(file)).double()
    return image, text


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_real_clip_features(impl: str) -> None:
    image, text = shared_features()
    gap = (image.mean(dim=0) - text.mean(dim=0)).norm().item()
    assert round(gap, 4) == 0.8514
    assert round((image * text).sum(dim=1).mean().item(), 4) == 0.3099
    # For a kernel much wider than the clouds only the means count: D_CS -> |gap|^2 / sigma^2.
    wide = cauchy_schwarz_divergence(image, text, bandwidth=50.0, impl=impl).item()
    assert math.isclose(wide * 50.0**2, gap**2, rel_tol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype_of_the_value_and_of_the_gradient(dtype: torch.dtype) -> None:
    x = cloud(5).to(dtype).requires_grad_()
    value = cauchy_schwarz_divergence(x, cloud(4, seed=1).to(dtype), impl="tiled")
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.autograd.grad(value, x)[0].dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth.*0"),
        ({"bandwidth": -1.0}, "bandwidth.*-1"),
        ({"bandwidth": math.nan}, "bandwidth.*nan"),
        ({"bandwidth": "medain"}, "bandwidth.*'medain'.*'median'"),
        ({"bandwidth": "temperature"}, 'bandwidth: "temperature" needs a logit_scale'),
        ({"impl": "tilde"}, "impl.*'tilde'.*'tiled'"),
        ({"weights_x": [1.0, 2.0]}, "weights.*2.*3"),
        ({"weights_x": [1.0, -2.0, 1.0]}, "weights of x: .*finite"),
        ({"weights_y": [1.0, math.inf]}, "weights of y: .*finite"),
        ({"weights_y": [False, False]}, "weights.*0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        cauchy_schwarz_divergence(cloud(3), cloud(2), **arguments)  # type: ignore[arg-type]
    assert re.search(message, str(error.value))
    assert "\n" not in str(error.value)


def test_bad_samples() -> None:
    with pytest.raises(InputError, match=r"x.*3.*y.*2"):
        cauchy_schwarz_divergence(cloud(3), cloud(3, dim=2))
    with pytest.raises(InputError, match=r"^y.*1 of 3.*NaN.*row 1"):
        cauchy_schwarz_divergence(cloud(3), [[0, 0, 0], [0, math.nan, 0], [1, 1, 1]])
    with pytest.raises(InputError, match=r"^x.*shape"):
        cauchy_schwarz_divergence(torch.zeros(0, 3), cloud(3))
