"""Permutation tests of the label of a space: which of two spaces does a row belong to?

If two spaces are samples of one distribution, the labels of their rows are exchangeable, so a statistic computed with
permuted labels has the distribution of the measured one (Phipson & Smyth 2010). Rows that are pairs are close to each
other, so the labels are then exchanged within pairs only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

TIE = 1e-9


@dataclass(frozen=True)
class Tested:
    """A value, the central 95 % of its permuted values (low, high), and p = (1 + permuted values that are at least as
    far out) / (1 + permutations)."""

    value: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, value: float, permuted: Tensor, *, two_sided: bool = False) -> Tested:
        found = permuted.double()
        middle = float(found.median()) if two_sided else 0.0
        extreme = (found - middle).abs() >= abs(value - middle) - TIE if two_sided else found >= value - TIE
        low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
        return cls(value, low, high, (1 + int(extreme.sum())) / (1 + len(found)))

    def record(self) -> dict[str, float]:
        """Return the test for JSON."""
        return {"value": self.value, "null_low": self.low, "null_high": self.high, "p": self.p}


def permuted_labels(n: int, m: int, count: int, seed: int, *, paired: bool) -> Tensor:
    """Return labels (n + m, 1 + count), float32, 1 for the first space; column 0 has the measured ones.

    paired: n == m, and row i and row n + i are a pair, whose labels are exchanged with probability 1/2.
    """
    generator = torch.Generator().manual_seed(seed)
    measured = torch.cat([torch.ones(n), torch.zeros(m)])[:, None]
    if paired:
        first = (torch.rand(n, count, generator=generator) < 0.5).float()
        return torch.cat([measured, torch.cat([first, 1 - first])], dim=1)
    order = torch.rand(n + m, count, generator=generator).argsort(dim=0)
    return torch.cat([measured, (order < n).float()], dim=1)


def divergence_test(x: Tensor, y: Tensor, labels: Tensor, bandwidth: float) -> Tested:
    """Test D_CS = log mean k(x, x') + log mean k(y, y') - 2 log mean k(x, y), diagonals kept, Gaussian kernel.

    x: (n, d), y: (m, d), unit rows. labels: of permuted_labels.
    """
    union = torch.cat([x, y]).float()
    found = _divergences(_kernel(union @ union.T, bandwidth), labels)
    return Tested.of(float(found[0]), found[1:])


def centred_divergence_test(x: Tensor, y: Tensor, labels: Tensor, bandwidth: float) -> Tested:
    """Test D_CS after each space is centred and scaled to unit rows; every permutation is centred again.

    Accepted if the spaces differ by a shift of the mean at most. x: (n, d), y: (m, d), not centred.
    """
    rest = torch.cat([x - x.mean(dim=0), y - y.mean(dim=0)]).double()
    inner = (rest @ rest.T).float()
    found = [_centred_divergence(inner, z, bandwidth) for z in labels.T]
    return Tested.of(found[0], torch.tensor(found[1:]))


def _centred_divergence(inner: Tensor, z: Tensor, bandwidth: float) -> float:
    """D_CS of rows centred by group, from their inner products (N, N). z: (N,), 1 in the first group."""
    groups = torch.stack([z / z.sum(), (1 - z) / (1 - z).sum()], dim=1)  # (N, 2): weights of the two means
    along = inner @ groups  # (N, 2): inner product of a row with each mean
    between = groups.T @ along
    mine = (1 - z).long()
    cross = along[:, mine]  # (N, N): row i with the mean of j's group
    centred = inner - cross - cross.T + between[mine][:, mine]
    lengths = centred.diagonal().clamp_min(1e-12).sqrt()
    kernel = _kernel(centred / torch.outer(lengths, lengths), bandwidth)
    return float(_divergences(kernel, z[:, None])[0])


def _kernel(cosines: Tensor, bandwidth: float) -> Tensor:
    return ((cosines - 1) / bandwidth**2).exp()


def _divergences(kernel: Tensor, labels: Tensor) -> Tensor:
    """D_CS for each column of labels, (columns,) float64."""
    sums = kernel @ labels
    n = labels.sum(dim=0).double()
    m = len(labels) - n
    xx, xy = (labels * sums).sum(dim=0).double(), ((1 - labels) * sums).sum(dim=0).double()
    yy = kernel.double().sum() - xx - 2 * xy
    return (xx / n**2).log() + (yy / m**2).log() - 2 * (xy / (n * m)).log()


@dataclass(frozen=True)
class Bias:
    """Bias of the query's space at k, for the queries of one space: fraction of the k nearest rows of both spaces that
    are in the query's space, minus its fraction of the candidates. error: standard error over the queries."""

    tested: Tested
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval over queries."""
        return self.tested.value - 1.96 * self.error, self.tested.value + 1.96 * self.error

    def record(self) -> dict[str, float]:
        low, high = self.interval
        return self.tested.record() | {"low": low, "high": high}


def bias_tests(x: Tensor, y: Tensor, labels: Tensor, k: int, seed: int) -> tuple[Bias, Bias]:
    """Test the bias of the query's space at k, for queries of x and of y; the query itself is no candidate.

    x: (n, d), y: (m, d), unit rows. Equal scores are in random order.
    """
    order = torch.randperm(len(x) + len(y), generator=torch.Generator().manual_seed(seed))
    points, z = torch.cat([x, y]).float()[order], labels[order]
    near = nearest_rows(points, points, k, own=True)
    first = _first_share(z, near)
    found = []
    for own, share in ((z, first), (1 - z, 1 - first)):
        base = (own.sum(dim=0) - 1) / (len(points) - 1)
        values = (own * share).sum(dim=0) / own.sum(dim=0) - base
        mine = share[:, 0][own[:, 0] > 0]
        error = float(mine.std() / len(mine) ** 0.5) if len(mine) > 1 else float("inf")
        found.append(Bias(Tested.of(float(values[0]), values[1:], two_sided=True), error))
    return found[0], found[1]


def _first_share(z: Tensor, near: Tensor) -> Tensor:
    """(N, columns): fraction of each row's neighbours with label 1."""
    total = torch.zeros_like(z)
    for column in near.T:
        total += z[column]
    return total / near.shape[1]


def nearest_rows(queries: Tensor, rows: Tensor, k: int, *, own: bool = False) -> Tensor:
    """(Q, k) indices of the rows with the largest inner products; own: query i is row i and no candidate."""
    found = []
    for start in range(0, len(queries), 1024):
        scores = queries[start : start + 1024] @ rows.T
        if own:
            scores[torch.arange(len(scores)), torch.arange(start, start + len(scores))] = -torch.inf
        found.append(scores.topk(min(k, len(rows) - own), dim=1).indices)
    return torch.cat(found)


def unit(rows: Tensor, mean: Tensor | None = None) -> Tensor:
    """Rows of length 1, float32, after the mean is subtracted; rows shorter than rounding errors stay zero."""
    rest = rows.double() if mean is None else rows.double() - mean
    scale = rows.double().norm(dim=1).mean().clamp_min(1e-300)
    return torch.where(rest.norm(dim=1, keepdim=True) > 1e-6 * scale, normalize(rest, dim=1), 0.0).float()
