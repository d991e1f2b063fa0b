"""Exact search: the scan by 8-bit codes, ties, and several queries at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.search import exact
from csaligner.search.exact import ExactSearch


def rows(n: int, seed: int, d: int = 48) -> Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use codes for few rows too, whether they are faster here or not."""
    monkeypatch.setattr(exact, "CODED_ROWS", 100)
    monkeypatch.setattr(exact.Codes, "if_faster", exact.Codes.of)


@pytest.mark.parametrize(("spread", "k"), [(1.0, 1), (1.0, 10), (0.05, 10), (0.05, 46), (1.0, 47), (1.0, 2999)])
def test_the_scan_does_not_change_the_answer(coded: None, spread: float, k: int) -> None:
    centre = rows(1, 9)
    vectors = normalize(centre + spread * rows(3000, 1), dim=1)
    queries = normalize(centre + spread * rows(40, 2), dim=1)
    plain, fast = ExactSearch(vectors), ExactSearch(vectors)
    fast.prepare()
    together = plain.nearest_all(queries, k)
    wanted = (vectors.double() @ queries.double().T).T.float().sort(dim=1, descending=True, stable=True)
    for n, query in enumerate(queries[: exact.CODED_AFTER]):  # before `plain` uses codes as well
        for positions, cosines in (plain.nearest(query, k), fast.nearest(query, k), together[n]):
            assert torch.equal(positions, wanted.indices[n, :k])
            assert torch.equal(cosines, wanted.values[n, :k])


def test_equal_rows_are_in_their_order(coded: None) -> None:
    vectors = rows(500, 1).repeat(4, 1)
    search = ExactSearch(vectors)
    for _ in range(2 * exact.CODED_AFTER):  # codes are used from some query on
        positions, _ = search.nearest(vectors[7], 6)
        assert positions[:4].tolist() == [7, 507, 1007, 1507]


def test_few_rows_and_more_results_than_rows() -> None:
    vectors = rows(3, 1)
    assert len(ExactSearch(vectors).nearest(vectors[0], 10)[0]) == 3
    assert len(ExactSearch(torch.empty(0, 48)).nearest(vectors[0], 10)[0]) == 0
    assert [len(p) for p, _ in ExactSearch(torch.empty(0, 48)).nearest_all(vectors, 10)] == [0, 0, 0]
