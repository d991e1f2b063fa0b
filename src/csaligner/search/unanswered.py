"""What a score means: how often a query without an answer finds something as close.

A caption whose image and other captions are taken out of the index is a query without an answer; so is an image without
itself and its captions, and an image with its caption, fused. In an index of fused items these are their images and
captions, each without its own item. The best scores s_1..s_n of n such queries of the index give, for a new query with
the best score s,

    chance(s) = (1 + number of s_i >= s) / (n + 1),

a conformal p-value (Vovk et al. 2005): if the new query has no answer and is otherwise like those of the index, chance
is at most a in a fraction a of the cases, for every a. "No good match" at chance > 0.05 is therefore missing for 5 % of
the queries without an answer (standard error over indexes sqrt(0.05 * 0.95 / n)). Each kind of query has its own
scores, and a query of words and an image those of its weight, rounded to one decimal. No judgements are needed, but
captions are: with fewer than 100 captions with an image (queries with words) or 100 images (image queries) nothing is
said.

At most 10,000 queries are asked, and fewer in a large index. The best cosine of each with each kind of item is kept, so
that an update need not compare them again: if at most a fraction f of the items was added, changed or deleted since
then, and the others are like them, the chance of a score is wrong by at most a factor 1 + f (a random part of the items
contains the best one with the probability of its size). They are asked again when f is above 1 %, where the standard
error of a chance of 5 % among 10,000 queries is 4 % of it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csaligner.adapters.fusion import fuse
from csaligner.checks import InputError
from csaligner.integrity import load_tensors, open_seal, save_tensors, write_sealed
from csaligner.parsing import checked, parse_json
from csaligner.types import Modality

from .calibration import MODALITIES, Calibration
from .index import Index, SearchOptions
from .lance_table import FUSED, ItemKind
from .manifest import OWNER
from .query import Kind

SCORES = "unanswered.json"  # of queries with the default options, written with the index
COSINES = "unanswered.safetensors"  # best cosines of these queries, read by updates only
DRIFT = 0.01  # of the items that may have changed since the queries were asked
LEVEL = 0.05
MIN_QUERIES, MAX_QUERIES = 100, 10_000
MAX_PAIRS = 400_000_000  # cosines of queries and items: some seconds
CHUNK = 256


@dataclass(frozen=True)
class Items:
    """vectors: (N, d), unit rows of one kind; groups: (N,) int64, equal for an image and its captions."""

    vectors: Tensor
    groups: Tensor


@dataclass(frozen=True)
class Change:
    """An update of an index. version: of the tables before it; items: how many were added, changed or deleted."""

    version: list[int]
    items: int


def best_without_answer(
    queries: Items,
    candidates: Mapping[ItemKind, Items] | Mapping[Modality, Items],
    kind: Kind,
    calibration: Calibration | None = None,
) -> Tensor:
    """Return the best score of each query among candidates of other groups: (Q,); -inf if there are none.

    kind: of the queries, their modality or the weight of the image."""
    return _best_scores(best_cosines(queries, candidates), kind, calibration)


def best_cosines(
    queries: Items, candidates: Mapping[ItemKind, Items] | Mapping[Modality, Items]
) -> dict[ItemKind, Tensor]:
    """Return the best cosine of each query with the candidates of each kind, of other groups: (Q,) by kind."""
    found: dict[ItemKind, Tensor] = {}
    for item, of_item in candidates.items():
        best = torch.full((len(queries.vectors),), -torch.inf)
        for start in range(0, len(best) if len(of_item.vectors) else 0, CHUNK):
            own = queries.groups[start : start + CHUNK, None] == of_item.groups
            cosines = queries.vectors[start : start + CHUNK] @ of_item.vectors.T
            best[start : start + CHUNK] = cosines.masked_fill_(own, -torch.inf).amax(dim=1)
        found[item] = best
    return found


def _best_scores(cosines: Mapping[ItemKind, Tensor], kind: Kind, calibration: Calibration | None) -> Tensor:
    """Return the best score of each query over all kinds of items; calibration is increasing, so it needs no others."""
    shares: Mapping[Modality, float] = {"image": kind, "text": 1 - kind} if isinstance(kind, float) else {kind: 1.0}
    scores = [calibration.apply_shares(shares, item, x) if calibration else x for item, x in cosines.items()]
    return torch.stack(scores).amax(dim=0)


def chance(score: float, without_answer: Tensor) -> float:
    """Return the p-value of a best score; see the module."""
    return (1 + int((without_answer >= score).sum())) / (1 + len(without_answer))


def limit(without_answer: Tensor, level: float = LEVEL) -> float:
    """Return the largest score whose chance is above `level` < 1."""
    allowed = int(level * (1 + len(without_answer)) + 1e-9)  # values of chance that are at most the level
    return float(without_answer.sort(descending=True).values[allowed - 1]) if allowed else float("inf")


def rounded(kind: Kind) -> Kind:
    """Return the kind of query with its weight rounded to one decimal between 0.1 and 0.9, so that few are measured."""
    return min(0.9, max(0.1, round(kind, 1))) if isinstance(kind, float) else kind


class Unanswered:
    """Scores of queries without an answer in an index; measured on first use and again after a write. Thread-safe."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._version: list[int] = []
        self._scores: dict[tuple[Kind, SearchOptions], Tensor | None] = {}

    def chance(self, score: float, kind: Kind, options: SearchOptions | None = None) -> float | None:
        """Return how often a query of this kind (index.Kind) without an answer has a best score of at least `score`.

        None if the index has too few items with captions to tell.
        """
        found = self._scores_of(kind, options)
        return None if found is None else chance(score, found)

    def limit(self, kind: Kind, options: SearchOptions | None = None, level: float = LEVEL) -> float | None:
        """Return the largest score of this kind of query whose chance is above `level`; None as for `chance`."""
        found = self._scores_of(kind, options)
        return None if found is None else limit(found, level)

    def _scores_of(self, kind: Kind, options: SearchOptions | None) -> Tensor | None:
        key = (rounded(kind), options or SearchOptions())
        with self._lock:
            if self._version != self._index.items.version:
                self._version = self._index.items.version
                self._scores.clear()
            if key not in self._scores:
                self._scores[key] = self._measure(*key)
            return self._scores[key]

    def write(self, change: Change | None = None) -> None:
        """Save the scores of queries with the default options with the index, measured now or, after a small change,
        with the cosines that are known; requires the lock of its folder. change: since the last call, None: unknown."""
        items, calibration = self._index.items, self._index.calibration
        known, changed = ({}, 0) if change is None else self._known(change)
        found = {m: known.get(m) or self._cosines(m, SearchOptions()) for m in MODALITIES}
        scores = {m: None if x is None else _best_scores(x, m, calibration) for m, x in found.items()}
        saved = {m: None if x is None else x.sort().values.tolist() for m, x in scores.items()}
        write_sealed(self._index.path / SCORES, {"version": items.version, "scores": saved})
        tensors = {f"{m} {kind}": x for m, cosines in found.items() for kind, x in (cosines or {}).items()}
        about = {"version": torch.tensor(items.version), "changed": torch.tensor(changed)}
        save_tensors(tensors | about, self._index.path / COSINES)

    def _known(self, change: Change) -> tuple[dict[Modality, dict[ItemKind, Tensor]], int]:
        """Return the cosines of the last update by kind of query and item, and how many items have changed since they
        were measured; none, and 0, if these are too many or not known."""
        try:
            tensors = load_tensors(self._index.path / COSINES, OWNER)
            version, changed = tensors.pop("version").tolist(), int(tensors.pop("changed"))
        except (InputError, OSError, KeyError):
            return {}, 0
        changed += change.items
        if version != change.version or changed > DRIFT * len(self._index):
            return {}, 0
        found: dict[Modality, dict[ItemKind, Tensor]] = {}
        for m in MODALITIES:
            cosines = {kind: tensors[name] for kind in self._index.kinds() if (name := f"{m} {kind}") in tensors}
            found |= {m: cosines} if len(cosines) == len(self._index.kinds()) else {}
        return found, changed if found else 0

    def _measure(self, kind: Kind, options: SearchOptions) -> Tensor | None:
        if options == SearchOptions() and not isinstance(kind, float):
            saved = _read_scores(self._index.path / SCORES, self._index.items.version)
            if saved is not None:
                scores = saved[kind]
                return None if scores is None else torch.tensor(scores)
        cosines = self._cosines(kind, options)
        calibration = self._index.calibration if options.calibrated and options.space == "aligned" else None
        return None if cosines is None else _best_scores(cosines, kind, calibration)

    def _cosines(self, kind: Kind, options: SearchOptions) -> dict[ItemKind, Tensor] | None:
        """Ask queries without an answer; None if there are too few."""
        space, owners = self._index.space(options.space), self._index.items.owners()
        numbers: dict[str, int] = {}
        kinds = space.vectors
        items = {k: Items(space.vectors[k], _groups(k, space.rows[k].tolist(), owners[k], numbers)) for k in kinds}
        owned = [n for n, row in enumerate(space.rows["text"].tolist()) if owners["text"].get(row, ("", ""))[1]]
        texts = items["text"]
        asked: dict[Modality, Items] = {
            "image": items["image"],
            "text": Items(texts.vectors[owned], texts.groups[owned]),
        }
        parts = self._index.parts if FUSED in kinds else None
        if parts is not None:
            asked = {m: _joined(asked[m], Items(parts[m], items[FUSED].groups)) for m in asked}
        queries = _queries(asked, kind)
        if len(queries.vectors) < MIN_QUERIES:
            return None
        some = torch.randperm(len(queries.vectors), generator=torch.Generator().manual_seed(0))[
            : max(MIN_QUERIES, min(MAX_QUERIES, MAX_PAIRS // sum(len(i.groups) for i in items.values())))
        ]
        wanted = [k for k in self._index.kinds(options.only) if k in items]
        sample = Items(queries.vectors[some], queries.groups[some])
        return best_cosines(sample, {k: items[k] for k in wanted})


def _joined(first: Items, second: Items) -> Items:
    return Items(torch.cat([first.vectors, second.vectors]), torch.cat([first.groups, second.groups]))


def _queries(asked: Mapping[Modality, Items], kind: Kind) -> Items:
    """Return the queries of a kind: images, captions, or both fused."""
    image, captions = asked["image"], asked["text"]
    if not isinstance(kind, float):
        return asked[kind]
    row_of = {group: row for row, group in enumerate(image.groups.tolist())}
    both = [(n, row_of[group]) for n, group in enumerate(captions.groups.tolist()) if group in row_of]
    if not both:
        return Items(captions.vectors[:0], captions.groups[:0])
    of_text, of_image = (torch.tensor(rows) for rows in zip(*both, strict=True))
    return Items(fuse(image.vectors[of_image], captions.vectors[of_text], kind), captions.groups[of_text])


def _read_scores(path: Path, version: list[int]) -> dict[Modality, list[float] | None] | None:
    """Read the scores of both modalities; None if missing, damaged or of another version of the tables."""
    try:
        value = open_seal(path, parse_json(path.read_text(encoding="utf-8")), OWNER)
        if value["version"] != version:
            return None
        found = checked(dict[Modality, list[float] | None], value["scores"])
        return found if set(found) == set(MODALITIES) else None
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _groups(
    kind: ItemKind, rows: Sequence[int], owners: Mapping[int, tuple[str, str]], numbers: dict[str, int]
) -> Tensor:
    """Return a number per row, equal for an image and its captions."""
    found = []
    for row in rows:
        own, owner = owners.get(row, ("", ""))
        name = owner or f"text {own}" if kind == "text" else own
        found.append(numbers.setdefault(name, len(numbers)))
    return torch.tensor(found, dtype=torch.int64)
