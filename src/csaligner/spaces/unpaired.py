"""A start without pairs: two clouds of vectors of the same meaning, matched by their structure.

1. Rows are scaled to unit length, centred, and scaled again.
2. k-means in both spaces; the centroids are matched by quadratic assignment of their Gram matrices A and B: the
   permutation P with the largest trace(A' P B P') (FAQ, Vogelstein et al. 2015, from several starts).
3. Rows are matched to their mutual nearest neighbours in the subspace of the matched centroids, and a Procrustes map is
   fitted to these matches; both are repeated until the matches stay.

Steps 2 and 3 are done for several numbers of clusters, and the map with the largest mean cosine of nearest neighbours
is kept. Source: mini-vec2vec (arXiv 2510.02348).

A map comes out of any two clouds. Whether it means anything is judged by its stability: agreement is the fraction of
rows whose match is the same in independent attempts, each on another random 80 % of the rows of each space.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.start import Affine
from csaligner.checks import InputError
from csaligner.extras import install_command

from .maps import query_aligner
from .permutation import unit
from .space import Space, sample

MIN_ROWS, MAX_ROWS = 100, 4000
CLUSTERS = (8, 12, 16, 20, 30)
ATTEMPTS, STARTS, ROUNDS = 3, 10, 30
SHARE = 0.8  # of the rows of each space, in an attempt
MIN_AGREEMENT = 0.6
WHEN_NOT = (
    "Do not match without pairs if you have some, or for image and text vectors, or where a wrong match does harm."
)
SMALL = 0.1  # singular values below this part of the largest are not taken from the centroids

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class UnpairedStart:
    """names: of the spaces. means: of their unit rows; rotation: (d, e), from the first centred space to the second.

    agreement: see the module; mutual: fraction of the sampled rows with a mutual nearest neighbour;
    clusters: chosen number; rows: of each space that were used.
    """

    names: tuple[str, str]
    means: tuple[Tensor, Tensor]
    rotation: Tensor
    agreement: float
    mutual: float
    clusters: int
    rows: tuple[int, int]

    @property
    def known(self) -> bool:
        """Whether the match is stable: at least 60 % of the matches agree between attempts."""
        return self.agreement >= MIN_AGREEMENT

    @property
    def aligner(self) -> Aligner:
        """An aligner for queries of the first space ("text") in an index of the second ("image") as it is stored."""
        dims = len(self.means[0]), len(self.means[1])
        start = Affine(self.means[0], self.rotation, torch.zeros(dims[1]))  # the mean would favour the same rows
        return query_aligner(start, dims)

    @property
    def sentence(self) -> str:
        """The result in one plain sentence with the figures that it rests on."""
        what = " and ".join(self.names)
        figures = f"{self.agreement:.0%} of the matches agree between attempts"
        if self.known:
            return f"The structure of {what} matches ({figures}); check some matches by eye, or with a few pairs."
        return f"Cannot know how {what} match without pairs ({figures}); give pairs, a few hundred are enough."

    def transform_first(self, rows: Tensor | NDArray[Any]) -> Tensor:
        """Map rows of the first space, (N, d), to unit vectors of the second centred space, (N, e).

        Raises InputError for other dimensions, as the other methods do.
        """
        return normalize(_centred(rows, self.means[0]) @ self.rotation, dim=1)

    def transform_second(self, rows: Tensor | NDArray[Any]) -> Tensor:
        """Map rows of the second space, (M, e), to unit vectors after centring, (M, e)."""
        return _centred(rows, self.means[1])

    def pairs(self, first: Tensor | NDArray[Any], second: Tensor | NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Return row numbers (P,), (P,) of mutual nearest neighbours: pairs to train on, for example with CSAligner."""
        return _mutual(self.transform_first(first), self.transform_second(second))

    def record(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {
            "spaces": list(self.names),
            "known": self.known,
            "agreement": self.agreement,
            "mutual": self.mutual,
            "clusters": self.clusters,
            "rows": list(self.rows),
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class _Attempt:
    """quality: mean cosine of nearest neighbours, both directions."""

    quality: float
    rotation: Tensor
    clusters: int


def align_unpaired(first: Space, second: Space, *, seed: int = 0) -> UnpairedStart:
    """Match two spaces without pairs; see the module. The dimensions may differ.

    Both must hold items of the same meaning in about the same proportions, and these must form clusters whose distances
    differ. `known` of the result says whether the match is stable; if it is False, the map means nothing. At most 4,000
    rows of each space are used. Raises InputError with fewer than 100 usable rows, for equal names, and without
    scikit-learn.
    """
    if first.name == second.name:
        raise InputError(f"names: both spaces are named {first.name!r}; give two names")
    for space in (first, second):
        if int(space.usable.sum()) < MIN_ROWS:
            raise InputError(f"{space.name}: {int(space.usable.sum())} usable rows, wanted at least {MIN_ROWS}")
    kept = [space.rows[space.usable].float() for space in (first, second)]
    means = [normalize(rows.double(), dim=1).mean(dim=0).float() for rows in kept]
    x, y = (_centred(rows[sample(len(rows), MAX_ROWS, seed)], mean) for rows, mean in zip(kept, means, strict=True))
    tried = [[_attempt(x, y, k, seed + 1000 * number) for k in CLUSTERS] for number in range(ATTEMPTS)]
    attempts = [max(found, key=lambda one: one.quality) for found in tried]
    best = max(attempts, key=lambda found: found.quality)
    matches = [_nearest(normalize(x @ found.rotation, dim=1), y)[0] for found in attempts]
    same = [float((a == b).float().mean()) for a, b in itertools.combinations(matches, 2)]
    return UnpairedStart(
        names=(first.name, second.name),
        means=(means[0], means[1]),
        rotation=best.rotation,
        agreement=sum(same) / len(same),
        mutual=len(_mutual(normalize(x @ best.rotation, dim=1), y)[0]) / min(len(x), len(y)),
        clusters=best.clusters,
        rows=(len(x), len(y)),
    )


def _centred(rows: Tensor | NDArray[Any], mean: Tensor) -> Tensor:
    found = torch.as_tensor(rows)
    if found.ndim != 2 or found.shape[1] != len(mean):
        raise InputError(f"rows: got shape {tuple(found.shape)}, wanted (rows, {len(mean)}) as in align_unpaired")
    return normalize(normalize(found.float(), dim=1) - mean, dim=1)


def _attempt(every_x: Tensor, every_y: Tensor, clusters: int, seed: int) -> _Attempt:
    """Match random parts of both spaces, so that attempts agree only on what does not hang on a few rows."""
    rng = np.random.default_rng(seed)
    x, y = (rows[sample(len(rows), int(SHARE * len(rows)), seed + at)] for at, rows in enumerate((every_x, every_y)))
    centres = [_centroids(rows, clusters, seed + at) for at, rows in enumerate((x, y))]
    order = _assign(_gram(centres[0]), _gram(centres[1]), rng)
    u, size, vh = torch.linalg.svd((centres[0].T @ centres[1][order]).double(), full_matrices=False)
    sure = size > SMALL * size[0]
    rotation = (u[:, sure] @ vh[sure]).float()  # only the directions that the centroids know
    before: tuple[Tensor, Tensor] | None = None
    for _ in range(ROUNDS):
        known = normalize(y @ rotation.T @ rotation, dim=1) if before is None else y
        rows = _mutual(normalize(x @ rotation, dim=1), known)
        if before is not None and all(torch.equal(new, old) for new, old in zip(rows, before, strict=True)):
            break
        before = rows
        u, _, vh = torch.linalg.svd((x[rows[0]].T @ y[rows[1]]).double(), full_matrices=False)
        rotation = (u @ vh).float()
    mapped = normalize(every_x @ rotation, dim=1)
    (_, near), (_, back) = _nearest(mapped, every_y), _nearest(every_y, mapped)
    return _Attempt(float(near.mean() + back.mean()) / 2, rotation, clusters)


def _centroids(rows: Tensor, clusters: int, seed: int) -> Tensor:
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise InputError(f"without pairs: scikit-learn is not installed; {install_command('compare')}") from None
    found = KMeans(clusters, n_init=5, random_state=seed).fit(rows.numpy())
    return torch.from_numpy(found.cluster_centers_.astype(np.float32))


def _gram(centres: Tensor) -> Matrix:
    """Cosines of the centroids (K, K), zero on the diagonal, less their mean."""
    unit_rows = unit(centres).double().numpy()
    gram: Matrix = unit_rows @ unit_rows.T
    off = ~np.eye(len(gram), dtype=bool)
    return np.where(off, gram - gram[off].mean(), 0.0)


def _assign(a: Matrix, b: Matrix, rng: np.random.Generator) -> Tensor:
    """Return the order of b that fits a best."""
    from scipy.optimize import quadratic_assignment

    best, order = -np.inf, np.arange(len(a))
    for number in range(STARTS):
        options: dict[str, Any] = {"maximize": True}
        if number:
            options["P0"] = (1 / len(a) + _doubly_stochastic(len(a), rng)) / 2
        found = quadratic_assignment(a, b, method="faq", options=options)
        if found.fun > best:
            best, order = float(found.fun), found.col_ind
    return torch.from_numpy(np.asarray(order))


def _doubly_stochastic(n: int, rng: np.random.Generator) -> Matrix:
    matrix: Matrix = rng.random((n, n))
    for _ in range(100):
        matrix /= matrix.sum(axis=1, keepdims=True)
        matrix /= matrix.sum(axis=0, keepdims=True)
    return matrix


def _nearest(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Row number and cosine of the nearest row of each query."""
    found = [(part @ rows.T).max(dim=1) for part in torch.split(queries, 1024)]
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found])


def _mutual(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers of mutual nearest neighbours."""
    there, back = _nearest(x, y)[0], _nearest(y, x)[0]
    own = torch.arange(len(x))
    both = back[there] == own
    return own[both], there[both]
