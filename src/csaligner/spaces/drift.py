"""Drift: do new rows still fit the aligner of a run?

The new rows are compared with the training rows of the run by a permutation test of D_CS in each encoder's space; new
pairs are searched with the aligner and compared with the held-out pairs of the run, at the same number of pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner, encode
from csaligner.checks import InputError
from csaligner.evaluation.bootstrap import draw_counts, percentile_interval
from csaligner.model import AlignedModel
from csaligner.names import Names
from csaligner.paired_features import first_captions
from csaligner.run_folder import read_config, training_store
from csaligner.store.store import Store
from csaligner.training.training_data import some_pairs
from csaligner.types import PairedFeatures, Split

from .matching import MIN_PAIRS, TEST_PAIRS
from .permutation import Tested, divergence_test, nearest_rows, permuted_labels, unit
from .space import K, Pairing, Space, pair_rows, sample

FITS, CHANGED, DRIFTED = "fits", "changed", "drifted"
LEVEL, LOSS = 0.01, 0.02
ROWS, PERMUTATIONS = 1000, 999


@dataclass(frozen=True)
class Recall:
    """recall@10 of pairs with the aligner, mean of both directions: of the new pairs and of the run's held-out pairs;
    lost: held_out - new, with its 95 % bootstrap interval; pairs: number of each."""

    new: float
    held_out: float
    lost: float
    low: float
    high: float
    pairs: int

    def record(self) -> dict[str, float]:
        """Return the values for JSON."""
        lost = {"lost": self.lost, "lost_low": self.low, "lost_high": self.high}
        return {"new": self.new, "held_out": self.held_out, "pairs": self.pairs} | lost


@dataclass(frozen=True)
class Drift:
    """names: of the spaces; divergences: D_CS of new and training rows, by name; recall: None without pairs."""

    names: tuple[str, str]
    divergences: Mapping[str, Tested]
    recall: Recall | None

    @property
    def changed(self) -> tuple[str, ...]:
        """Spaces whose new rows differ from the training rows, at the 1 % level over both."""
        return tuple(name for name, tested in self.divergences.items() if tested.p < LEVEL / 2)

    @property
    def verdict(self) -> str:
        """fits; drifted: new pairs are found less often than held-out pairs, by more than 2 points (95 % interval);
        changed: without pairs, the rows differ from the training rows."""
        if self.recall is not None:
            return DRIFTED if self.recall.low > LOSS else FITS
        return CHANGED if self.changed else FITS

    @property
    def sentence(self) -> str:
        """The verdict in one plain sentence with the figures that it rests on."""
        rows = f"new {' and '.join(self.changed)} rows differ from the training rows" if self.changed else ""
        if self.recall is None:
            if not self.changed:
                return "The new rows look like the training rows (permutation p >= 0.005); pairs would say more."
            return f"The {rows}; whether results suffer cannot be known without pairs."
        r = self.recall
        figures = (
            f"recall@{K} {100 * r.new:.0f} % of {r.pairs} new pairs, {100 * r.held_out:.0f} % of held-out pairs of the "
            f"run; lost {100 * r.lost:.0f} points, 95 % interval {100 * r.low:.0f} to {100 * r.high:.0f}"
        )
        if self.verdict == FITS:
            return f"The aligner still fits: {figures}." + (f" The {rows}." if rows else "")
        return f"The new rows no longer fit the aligner: {figures}; train again with the new pairs."

    def record(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {
            "spaces": list(self.names),
            "gap/cs": {name: tested.record() for name, tested in self.divergences.items()},
            f"recall@{K}": self.recall.record() if self.recall else None,
            "verdict": self.verdict,
            "sentence": self.sentence,
        }


def drift(run: Path, first: Space, second: Space, *, pairing: Pairing = "auto", seed: int = 0) -> Drift:
    """Compare new rows with a run. first, second: new vectors of the run's two encoders, in this order.

    Raises InputError for other dimensions than those of the run, and if the store of the run no longer exists.
    """
    aligner, names = AlignedModel.open(run).aligner, Names.of(read_config(run).names)
    wanted = (aligner.config.dim_image, aligner.config.dim_text)
    for space, dim in zip((first, second), wanted, strict=True):
        if space.rows.shape[1] != dim:
            raise InputError(f"{space.name}: {space.rows.shape[1]} dimensions, wanted {dim} as in {run}")
    store = training_store(run)
    trained = some_pairs(store, "train", ROWS)
    by_name = zip((names.first, names.second), (first, second), (trained.image, trained.text), strict=True)
    divergences = {name: _divergence(space.rows[space.usable], rows, seed) for name, space, rows in by_name}
    pairs = pair_rows(first, second, pairing)
    recall = None
    if pairs is not None and len(pairs[0]) >= MIN_PAIRS:
        recall = _recall(aligner, (first.rows[pairs[0]], second.rows[pairs[1]]), _held_out(store), seed)
    return Drift((names.first, names.second), divergences, recall)


def _held_out(store: Store) -> PairedFeatures | None:
    splits: tuple[Split, ...] = ("test", "val")
    for split in splits:
        if store.counts.get(split, (0, 0))[0] >= MIN_PAIRS:
            return some_pairs(store, split, TEST_PAIRS)
    return None


def _divergence(new: Tensor, trained: Tensor, seed: int) -> Tested:
    x, y = (unit(rows[sample(len(rows), ROWS, seed)]) for rows in (new, trained))
    return divergence_test(x, y, permuted_labels(len(x), len(y), PERMUTATIONS, seed, paired=False), 0.5)


def _recall(aligner: Aligner, new: tuple[Tensor, Tensor], held: PairedFeatures | None, seed: int) -> Recall | None:
    """Recall of both sets of pairs, the same number of each."""
    if held is None:
        return None
    captions = held.text[first_captions(held.text_to_image, len(held.image))]
    count = min(len(new[0]), len(held.image), TEST_PAIRS)
    hits = []
    for x, y in (new, (held.image, captions)):
        rows = sample(len(x), count, seed)
        a, b = encode(aligner, "image", x[rows].float()), encode(aligner, "text", y[rows].float())
        own = torch.arange(count)[:, None]
        found = [(nearest_rows(q, r, K) == own).any(dim=1).double() for q, r in ((a, b), (b, a))]
        hits.append(torch.stack(found).mean(dim=0))
    means = [draw_counts(count, seed + n) @ found / count for n, found in enumerate(hits)]
    low, high = percentile_interval(means[1] - means[0])
    recalls = [float(found.mean()) for found in hits]
    return Recall(recalls[0], recalls[1], recalls[1] - recalls[0], low, high, count)
