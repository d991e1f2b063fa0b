"""One aligner of three or more named spaces: eeg, image and audio in one space, from vectors with shared ids.

The start is the canonical correlations of all spaces (adapters.fit_joint_start). Training minimises the mean InfoNCE
and D_CS over all pairs of spaces (losses.ModalitiesLoss). With the gate, training is tried on four fifths of the
training items, and kept only if the others show a gain of more than two standard errors over the start.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from csaligner.adapters.multi import MultiAligner, fit_joint_start
from csaligner.checks import InputError
from csaligner.config import TrainConfig
from csaligner.datasets.split import split_of
from csaligner.divergences import cauchy_schwarz_divergence
from csaligner.losses.modalities import ModalitiesLoss
from csaligner.types import Split

from .permutation import nearest_rows
from .space import K, Space, sample

MIN_ITEMS, GATE_ITEMS = 50, 200  # items in all spaces: to fit, to train with the gate
HELD_SHARE, ERRORS = 0.2, 2.0
DIM, EPOCHS, MAX_ROWS = 256, 40, 4096
UNTRAINED, ALIGNED = "untrained", "aligned"
SETTINGS = {"seed", "epochs", "batch_size", "lr", "wd", "dim", "gate", "objective"}

Rows = dict[str, Tensor]
Measures = Mapping[str, float]
Progress = Callable[[int, int], object]  # epochs done, total


@dataclass(frozen=True)
class Items:
    """rows: name -> (N, d), usable rows; ids: name -> (N,) int64, equal for rows of one item; keys: names of items."""

    rows: Rows
    ids: Rows
    keys: tuple[str, ...]

    @classmethod
    def of(cls, spaces: Sequence[Space]) -> Items:
        """Number the items of at least two spaces. Rows pair by ids or, if no space has ids and the numbers of rows
        are equal, row by row. Raises InputError."""
        names = [space.name for space in spaces]
        if len(set(names)) < len(names) or len(names) < 2:
            raise InputError(f"names: got {', '.join(names)}; wanted at least two spaces with different names")
        own: dict[str, Sequence[str]] = {space.name: space.ids for space in spaces if space.ids is not None}
        if not own and len({len(space.rows) for space in spaces}) == 1:
            own = {name: list(map(str, range(len(spaces[0].rows)))) for name in names}
        if len(own) < len(names):
            without = ", ".join(f"{s.name} ({len(s.rows)} rows)" for s in spaces if s.name not in own)
            raise InputError(f"ids: {without} without ids; give the ids of all spaces, or the same number of rows")
        number: dict[str, int] = {}
        rows, ids = {}, {}
        for space in spaces:
            usable = space.usable
            if (line := space.ignored) is not None:
                warnings.warn(line, stacklevel=3)
            numbered = torch.tensor([number.setdefault(key, len(number)) for key in own[space.name]])
            rows[space.name], ids[space.name] = space.rows[usable].float(), numbered[usable]
        return cls(rows, ids, tuple(number))

    @property
    def common(self) -> Tensor:
        """Numbers of the items that all spaces have, sorted."""
        found = torch.arange(len(self.keys))
        for own in self.ids.values():
            found = found[torch.isin(found, own)]
        return found

    def part(self, chosen: Tensor) -> Items:
        """Return the rows of these items."""
        keep = torch.zeros(len(self.keys), dtype=torch.bool).index_fill_(0, chosen, value=True)
        at = {name: keep[own] for name, own in self.ids.items()}
        return Items({n: x[at[n]] for n, x in self.rows.items()}, {n: i[at[n]] for n, i in self.ids.items()}, self.keys)

    def split(self, name: Split) -> Items:
        """Return the items of a split (datasets.split.split_of of their ids)."""
        return self.part(
            torch.tensor([n for n, key in enumerate(self.keys) if split_of(key) == name], dtype=torch.int64)
        )

    def counts(self) -> dict[str, int]:
        return {name: len(own) for name, own in self.ids.items()}


@dataclass(frozen=True)
class JointAlignment:
    """model: the aligner; trained: whether it is trained, or the closed-form start alone; pairs: "eeg-image" ->
    method (untrained, aligned) -> measures of held-out items; rows: of each space, by split; gain, error: recall@10 of
    the trial of training minus that of the start, and its standard error; NaN without a trial."""

    model: MultiAligner
    trained: bool
    pairs: Mapping[str, Mapping[str, Measures]]
    rows: Mapping[str, Mapping[str, int]]
    gain: float
    error: float

    @property
    def sentence(self) -> str:
        """What was kept, in one plain sentence."""
        trial = f"{100 * self.gain:+.1f} ± {100 * self.error:.1f} points of recall@{K} on held-out training items"
        if self.gain != self.gain:  # no trial
            return "Trained, without a trial." if self.trained else "Not trained: the untrained alignment."
        return (
            f"Training was kept: {trial}." if self.trained else f"The untrained alignment was kept; training: {trial}."
        )

    def record(self) -> dict[str, Any]:
        """Return the result for JSON."""
        gain = None if math.isnan(self.gain) else {"value": self.gain, "error": self.error}
        return {
            "spaces": list(self.model.config.dims),
            "trained": self.trained,
            "gain": gain,
            "rows": {split: dict(counts) for split, counts in self.rows.items()},
            "pairs": {pair: {m: dict(values) for m, values in found.items()} for pair, found in self.pairs.items()},
            "sentence": self.sentence,
        }


def align_spaces(
    spaces: Sequence[Space], config: TrainConfig | None = None, update: Progress | None = None
) -> JointAlignment:
    """Fit one aligner to named spaces, (N_k, d_k) each, and measure every pair of them on held-out items.

    Items are held out by the hash of their id, 15 % of them (datasets/split.py). config: seed, epochs (default 40; 0:
    the untrained alignment), batch_size, lr, wd, dim, gate, and of objective the weights of info_nce and
    cauchy_schwarz, bandwidth, logit_scale and impl. Raises InputError for other settings, and with fewer than 50 items
    in all spaces.
    """
    config = config or TrainConfig()
    loss, scale = _loss(config)
    items = Items.of(spaces)
    if len(items.common) < MIN_ITEMS:
        raise InputError(f"ids: {len(items.common)} items are in all of {', '.join(items.rows)}; wanted {MIN_ITEMS}")
    train, test = items.split("train"), items.split("test")
    dim = config.dim or min(DIM, max(x.shape[1] for x in items.rows.values()))

    def start(part: Items) -> MultiAligner:
        torch.manual_seed(config.seed)
        return MultiAligner(fit_joint_start(part.rows, part.ids, dim), logit_scale=scale)

    epochs = EPOCHS if config.epochs is None else config.epochs
    gain, error = float("nan"), float("nan")
    if config.gate and epochs and len(train.common) >= GATE_ITEMS:
        gain, error = _trial(train, start, loss, config, epochs)
    train_it = epochs > 0 and (gain > ERRORS * error if config.gate else True)
    untrained = start(train).eval()
    model = untrained
    if train_it:
        model = start(train)
        _train(model, loss, train, config, epochs, update)
    pairs = measure({UNTRAINED: untrained, ALIGNED: model.eval()}, test)
    rows = {"train": train.counts(), "val": items.split("val").counts(), "test": test.counts()}
    return JointAlignment(model, train_it, pairs, rows, gain, error)


def measure(models: Mapping[str, MultiAligner], items: Items) -> dict[str, dict[str, dict[str, float]]]:
    """Return recall, distance of the means and D_CS of every pair of spaces, by pair and name of the model.

    EEG_to_IMAGE_recall@k: fraction of items whose row in IMAGE is among the first k for their row in EEG, of several
    rows the first. At most 4,096 rows per space are used for D_CS.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method, model in models.items():
        with torch.inference_mode():
            placed = model(items.rows)
        for a, b in combinations(placed, 2):
            x, y = placed[a], placed[b]
            values = {}
            for (first, p), (second, q) in (((a, x), (b, y)), ((b, y), (a, x))):
                for k in (1, K):
                    hits = _hits(p, q, items.ids[first], items.ids[second], k)
                    values[f"{first}_to_{second}_recall@{k}"] = float(hits.mean()) if len(hits) else float("nan")
            values["gap/centroid"] = float((x.mean(dim=0) - y.mean(dim=0)).norm())
            few = (rows[sample(len(rows), MAX_ROWS, 0)] for rows in (x, y))
            values["gap/cs"] = float(cauchy_schwarz_divergence(*few, bandwidth=0.5))
            found.setdefault(f"{a}-{b}", {})[method] = values
    return found


def _hits(queries: Tensor, rows: Tensor, own: Tensor, ids: Tensor, k: int) -> Tensor:
    """(Q,) float64: whether the row of each query's item is among the first k, for items that both spaces have."""
    both = torch.isin(own, ids) & _first(own)
    kept = _first(ids)
    near = ids[kept][nearest_rows(queries[both], rows[kept], k)]
    return (near == own[both, None]).any(dim=1).double()


def _first(ids: Tensor) -> Tensor:
    """(N,) bool: the first row of each item."""
    order = ids.sort(stable=True)
    new = torch.ones(len(ids), dtype=torch.bool)
    new[1:] = order.values[1:] != order.values[:-1]
    return torch.zeros(len(ids), dtype=torch.bool).index_fill_(0, order.indices[new], value=True)


def _trial(
    train: Items, start: Callable[[Items], MultiAligner], loss: ModalitiesLoss, config: TrainConfig, epochs: int
) -> tuple[float, float]:
    """Return the gain of training over the start on held-out training items and its standard error."""
    common = train.common
    held = common[sample(len(common), int(HELD_SHARE * len(common)), config.seed)]
    known = torch.unique(torch.cat(list(train.ids.values())))
    rest, test = train.part(known[~torch.isin(known, held)]), train.part(held)
    before, model = start(rest).eval(), start(rest)
    _train(model, loss, rest, config, epochs, None)
    gains = _item_scores(model.eval(), test) - _item_scores(before, test)
    return float(gains.mean()), float(gains.std() / len(gains) ** 0.5)


@torch.inference_mode()
def _item_scores(model: MultiAligner, items: Items) -> Tensor:
    """(N,) recall@10 of each item that all spaces have, mean over pairs and directions; items sorted by number."""
    total, common, count = torch.zeros(len(items.common), dtype=torch.float64), items.common, 0
    placed = model(items.rows)
    for a, b in combinations(placed, 2):
        for first, second in ((a, b), (b, a)):
            own = items.ids[first]
            both = torch.isin(own, items.ids[second]) & _first(own)
            hits = _hits(placed[first], placed[second], own, items.ids[second], K)
            total += hits[own[both].argsort()][torch.isin(own[both].sort().values, common)]
            count += 1
    return total / count


def _train(
    model: MultiAligner, loss: ModalitiesLoss, items: Items, config: TrainConfig, epochs: int, update: Progress | None
) -> None:
    """Train on batches of items; every batch has items that all spaces have."""
    common = items.common
    known = torch.unique(torch.cat(list(items.ids.values())))
    others = known[~torch.isin(known, common)]
    batches = max(1, min(len(known) // config.batch_size, len(common) // 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.wd)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=epochs * batches)
    generator = torch.Generator().manual_seed(config.seed)
    model.train()
    for epoch in range(epochs):
        parts = [
            torch.tensor_split(each[torch.randperm(len(each), generator=generator)], batches)
            for each in (common, others)
        ]
        for chosen in map(torch.cat, zip(*parts, strict=True)):
            batch = items.part(chosen)
            total = loss(model(batch.rows), model.logit_scale, batch.ids).total
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            rate.step()
        if update is not None:
            update(epoch + 1, epochs)


def _loss(config: TrainConfig) -> tuple[ModalitiesLoss, float]:
    """Return the loss and the initial logit scale. Raises InputError for settings that do not apply."""
    other = sorted(config.model_fields_set - SETTINGS)
    if other:
        raise InputError(f"{other[0]}: does not apply to more than two spaces; known: {', '.join(sorted(SETTINGS))}")
    objective = config.objective
    weights = dict(objective.terms)
    nce, weight = weights.pop("info_nce", 0.0), weights.pop("cauchy_schwarz", 0.0)
    numbers = all(isinstance(value, (int, float)) for value in (nce, weight, objective.logit_scale))
    if weights or not numbers or nce != 1:
        raise InputError("objective: more than two spaces take info_nce with weight 1 and a number for cauchy_schwarz")
    loss = ModalitiesLoss(float(weight), bandwidth=objective.bandwidth, impl=objective.impl)  # type: ignore[arg-type]
    return loss, float(objective.logit_scale)  # type: ignore[arg-type]
