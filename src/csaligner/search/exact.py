"""Exact nearest neighbours of unit vectors: a scan with a bounded error, then the candidates in double precision."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CODED_AFTER, CODED_ROWS = 8, 20_000  # queries after which, and rows above which, 8-bit codes are tried
PART = 20_000  # rows that are coded at once, and tried first
HOPELESS = 3.0  # times as long as in single precision, which is without a fast product of 8-bit integers
LEVELS = 127
MOST = 8  # candidates above 1/8 of the rows: the scan in single precision is faster
RUN = 64  # scores of which the largest bounds the k-th largest of all from below
BLOCK = 64_000_000  # cosines of several queries in memory at once
RESCORED = 65_536  # candidates in double precision at once
UNIT = 2.0**-24  # rounding of single precision


class ExactSearch:
    """The k rows of largest inner product with a query. Thread-safe.

    A scan gives each row a score s with |s - q.x| <= e. Every row with s >= t - 2 e, where t is the k-th largest s, is
    a candidate: the k best are among them. The cosines of the candidates are computed in double precision and rounded
    to single precision; equal ones are in the order of the rows. So the answer does not depend on the scan:

    - in single precision e = d 2^-24 for unit vectors of d dimensions;
    - with 8-bit codes x' of the rows and two 8-bit codes of the query, e = max |x - x'| + |q - q'|. It reads a quarter
      of the memory, and is used after some queries if it is faster on this machine.
    """

    def __init__(self, vectors: Tensor) -> None:
        """vectors: (N, d) float32, unit rows; not copied."""
        self._vectors = vectors
        self._codes: Codes | None = None
        self._asked, self._lock = 0, threading.Lock()

    def nearest(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return positions (K,) int64 and cosines (K,) float32 of the k nearest rows, best first; K = min(k, N)."""
        k = min(k, len(self._vectors))
        codes = self._coded()
        if codes is not None:
            found = _candidates(*codes.scan(query), k)
            if MOST * len(found) <= len(self._vectors):
                return self.best(query, found, k)
        return self.best(query, _candidates(self._vectors @ query, self._rounding, k), k)

    def nearest_all(self, queries: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
        """Return `nearest` of each of Q queries (Q, d), by one product for many queries."""
        k, found = min(k, len(self._vectors)), []
        for some in torch.split(queries, max(1, BLOCK // max(1, len(self._vectors)))):
            scores = some @ self._vectors.T
            found += [
                self.best(query, _candidates(row, self._rounding, k), k)
                for query, row in zip(some, scores, strict=True)
            ]
        return found

    def prepare(self) -> None:
        """Code the rows now, if they are many and a scan by codes is faster here."""
        with self._lock:
            if self._asked <= CODED_AFTER:
                self._asked = CODED_AFTER + 1
                if len(self._vectors) > CODED_ROWS:
                    self._codes = Codes.if_faster(self._vectors)

    def _coded(self) -> Codes | None:
        if self._asked == CODED_AFTER:
            self.prepare()
        self._asked += self._asked < CODED_AFTER
        return self._codes

    @property
    def _rounding(self) -> float:
        return 2 * self._vectors.shape[1] * UNIT

    def best(self, query: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k best of the candidates, positions in increasing order."""
        exact = query.double()
        parts = [(self._vectors[some].double() @ exact).float() for some in torch.split(candidates, RESCORED)]
        cosines = torch.cat(parts) if parts else query.new_empty(0)
        order = cosines.argsort(descending=True, stable=True)[:k]
        return candidates[order], cosines[order]


@dataclass(frozen=True)
class Codes:
    """codes: (N, d) int8; steps: (N,), x' = steps * codes; residual: max |x - x'|."""

    codes: Tensor
    steps: Tensor
    residual: float

    @classmethod
    def if_faster(cls, vectors: Tensor) -> Codes | None:
        """Return the codes of the rows; None if torch has no fast product of 8-bit integers on this machine. All rows
        are timed: a part may fit into the cache, where reading less gains little."""
        some, query = vectors[:PART], vectors[0]
        trial = cls.of(some)
        try:
            hopeless = _seconds(lambda: trial.scan(query)) > HOPELESS * _seconds(lambda: some @ query)
        except (AttributeError, RuntimeError, NotImplementedError):
            return None
        if hopeless:
            return None
        found = cls.of(vectors)
        return found if _seconds(lambda: found.scan(query)) < _seconds(lambda: vectors @ query) else None

    @classmethod
    def of(cls, vectors: Tensor) -> Codes:
        codes, steps = torch.empty(vectors.shape, dtype=torch.int8), torch.empty(len(vectors))
        residual = 0.0
        for rows in torch.split(torch.arange(len(vectors)), PART):
            part = vectors[rows[0] : rows[-1] + 1]
            step = part.abs().amax(dim=1).clamp_min(1e-30) / LEVELS
            code = (part / step[:, None]).round()
            residual = max(residual, float((part - code * step[:, None]).norm(dim=1).max()))
            codes[rows[0] : rows[-1] + 1], steps[rows[0] : rows[-1] + 1] = code.to(torch.int8), step
        return cls(codes, steps, residual)

    def scan(self, query: Tensor) -> tuple[Tensor, float]:
        """Return x'.q', (N,), for q' = coarse + fine / 254 steps, and the bound e of its error."""
        parts, step = _parts(query)
        levels = torch.tensor([step, step / (2.0 * LEVELS)])
        scores = (torch._int_mm(self.codes, parts).float() @ levels).mul_(self.steps)
        missed = float((query - parts.float() @ levels).norm())
        return scores, self.residual * float(query.norm()) + missed * (1 + self.residual) + 4 * UNIT * len(query)


def _parts(query: Tensor) -> tuple[Tensor, float]:
    """Return (d, 2) int8, a coarse and a fine code of a query, and the step of the coarse one."""
    step = float(query.abs().max().clamp_min(1e-30)) / LEVELS
    coarse = (query / step).round()
    fine = ((query / step - coarse) * (2 * LEVELS)).round()
    return torch.stack([coarse, fine], dim=1).to(torch.int8), step


def _candidates(scores: Tensor, error: float, k: int) -> Tensor:
    """Return the positions of the scores that are not below the k-th largest by more than 2 errors, increasing."""
    if k >= len(scores):
        return torch.arange(len(scores))
    runs = len(scores) // RUN
    largest = scores if runs < k else scores[: runs * RUN].view(runs, RUN).amax(dim=1)
    least = float(largest.topk(k).values[-1]) - 2 * error
    found = (scores >= least).nonzero()[:, 0]
    if runs < k:
        return found
    near = scores[found]
    return found[near >= float(near.topk(k).values[-1]) - 2 * error]


def _seconds(call: Callable[[], object], times: int = 5) -> float:
    call()
    found = []
    for _ in range(times):
        began = time.thread_time()
        call()
        found.append(time.thread_time() - began)
    return min(found)
