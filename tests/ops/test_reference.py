"""Dense reference implementation against explicit sums and an independent library."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor
from torch.nn.functional import cross_entropy

from csaligner.ops import reference
from csaligner.ops.kernels import Gaussian


def cloud(rows: int, dim: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    return torch.from_numpy(rbf_kernel(x.numpy(), y.numpy(), gamma=0.5 / sigma**2))


def test_squared_distances_match_the_differences() -> None:
    x, y = cloud(5), cloud(7, seed=1)
    wanted = (x[:, None] - y).square().sum(dim=2)
    torch.testing.assert_close(reference.squared_distances(x, y), wanted, atol=1e-12, rtol=0)


def test_far_from_the_origin_float32_keeps_its_distances() -> None:
    x, y = cloud(5), cloud(7, seed=1)
    far = reference.squared_distances((x + 1000).float(), (y + 1000).float())
    torch.testing.assert_close(far.double(), reference.squared_distances(x, y), atol=5e-3, rtol=0)


def test_log_kernel_mean_is_the_weighted_mean_of_sklearns_kernel() -> None:
    x, y, a, b = cloud(6), cloud(4, seed=1), torch.arange(1.0, 7.0), torch.tensor([0.5, 1.0, 4.0, 0.1])
    k = gram(x, y, 0.8)
    plain = reference.log_kernel_mean(x, y, Gaussian(0.8))
    torch.testing.assert_close(plain, k.mean().log(), atol=1e-12, rtol=0)
    weighted = reference.log_kernel_mean(x, y, Gaussian(0.8), a, b)
    wanted = ((a / a.sum()).double() @ k @ (b / b.sum()).double()).log()
    torch.testing.assert_close(weighted, wanted, atol=1e-7, rtol=0)


def test_without_the_diagonal_only_pairs_of_different_rows_count() -> None:
    x, a = cloud(5), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    k = gram(x, x, 0.8).fill_diagonal_(0)
    value = reference.log_kernel_mean(x, None, Gaussian(0.8), diagonal=False)
    torch.testing.assert_close(value, (k.sum() / 20).log(), atol=1e-12, rtol=0)
    pairs = torch.outer(a, a).fill_diagonal_(0)
    value = reference.log_kernel_mean(x, None, Gaussian(0.8), a, diagonal=False)
    torch.testing.assert_close(value, ((pairs * k).sum() / pairs.sum()).log(), atol=1e-12, rtol=0)


def test_self_mean_is_exact_where_rounding_would_move_the_diagonal() -> None:
    x = 1000 * cloud(1).float()
    assert reference.log_kernel_mean(x, None, Gaussian(1e-3)).item() == 0


def test_info_nce_with_unique_ids_is_clips_loss() -> None:
    x, y, ids = cloud(6), cloud(6, seed=1), torch.tensor([3, 1, 4, 15, 9, 2])
    logits = 2.5 * x @ y.T
    target = torch.arange(6)
    wanted = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(reference.info_nce(x, y, 2.5, ids, ids), wanted)


def test_info_nce_by_hand_with_two_captions_of_one_image_and_an_unpaired_row() -> None:
    x, y = cloud(2), cloud(4, seed=1)
    value = reference.info_nce(x, y, 1.5, torch.tensor([0, 1]), torch.tensor([0, 0, 1, -1]))
    e = (1.5 * x @ y.T).exp()
    half = (e[:, 0] + e[:, 1]) / 2  # the two captions of image 0 have weight 1/2
    rows = -((half[0] / (half[0] + e[0, 2])).log() + (e[1, 2] / (half[1] + e[1, 2])).log()) / 2
    columns = -(
        (e[0, 0] / e[:, 0].sum()).log() / 2 + (e[0, 1] / e[:, 1].sum()).log() / 2 + (e[1, 2] / e[:, 2].sum()).log()
    )
    torch.testing.assert_close(value, (rows + columns / 2) / 2)


def test_a_row_without_partner_is_a_negative_but_enters_no_mean() -> None:
    x, y = cloud(3), cloud(2, seed=1)
    value = reference.info_nce(x, y, 1.0, torch.tensor([0, 1, 7]), torch.tensor([0, 1]))
    logits = x @ y.T
    target = torch.arange(2)
    wanted = (cross_entropy(logits[:2], target) + cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(value, wanted)


def test_id_weights() -> None:
    weights = reference.id_weights(torch.tensor([5, -1, 5, 2, -1]))
    assert weights.tolist() == [0.5, 0, 0.5, 1, 0]
    assert reference.id_weights(torch.tensor([5, -1, 5]), unpaired=1.0).tolist() == [0.5, 1, 0.5]


def test_gradients_by_finite_differences() -> None:
    x, y = cloud(4).requires_grad_(), cloud(3, seed=1).requires_grad_()
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2])
    assert torch.autograd.gradcheck(lambda x, y: reference.cauchy_schwarz(x, y, Gaussian(0.7)), (x, y))
    assert torch.autograd.gradcheck(lambda x, y: reference.mmd(x, y, Gaussian(0.7), unbiased=True), (x, y))
    assert torch.autograd.gradcheck(lambda x, y, s: reference.info_nce(x, y, s, *ids), (x, y, scale))


def test_one_point_each_is_the_squared_distance_over_the_squared_bandwidth() -> None:
    x, y = cloud(1), cloud(1, seed=1)
    value = reference.cauchy_schwarz(x, y, Gaussian(0.3)).item()
    assert math.isclose(value, (x - y).square().sum().item() / 0.09, rel_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [3, 512])
def test_a_point_lies_where_it_lies_itself(d: int, dtype: torch.dtype) -> None:
    x = torch.nn.functional.normalize(torch.randn(300, d, generator=torch.Generator().manual_seed(0)).to(dtype), dim=1)
    for rows in (x, x[:7]):
        found = reference.distances(rows + 0.3, x + 0.3)
        assert (found.diagonal() == 0).all()
        torch.testing.assert_close(found, torch.cdist(rows, x, compute_mode="donot_use_mm_for_euclid_dist"))
