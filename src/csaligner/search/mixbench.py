"""nDCG@10 on MixBench: one ranking of texts, images and items with both, for raw, centred and aligned vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.fusion import WEIGHT, check_image_weight, fuse
from csaligner.datasets.mixbench import MixBenchSet, MixItem, read_mixbench
from csaligner.evaluation.baselines import GRCLIP
from csaligner.evaluation.bootstrap import draw_counts, percentile_interval, resampled_means
from csaligner.evaluation.ranking import TIE
from csaligner.model import AlignedModel
from csaligner.paired_features import spaced
from csaligner.store.store import Store
from csaligner.types import Modality, PairedFeatures

from .vector_spaces import raw_dim, raw_vectors

K = 10
PUBLISHED: Mapping[str, float] = {"Qwen3-VL-Embedding-2B": 0.770, "VLM2Vec-Qwen2VL-7B": 0.633}
KINDS = ("text", "image", "both")
CHUNK = 512  # queries at once
MOST = 20_000  # images of the calibration pairs, evenly spaced
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Parts:
    """Vectors of N queries or items by modality: rows (n,) of those that have it, and their vectors (n, d)."""

    count: int
    rows: Mapping[Modality, Tensor]
    vectors: Mapping[Modality, Tensor]

    def mapped(self, change: Callable[[Modality, Tensor], Tensor]) -> Parts:
        """Return the parts with changed vectors."""
        return Parts(self.count, self.rows, {m: change(m, v) for m, v in self.vectors.items()})

    def fused(self, image_weight: float) -> Tensor:
        """Return one vector per query or item, (N, d): its single vector, or fuse(image, text, image_weight)."""
        dim = next(v.shape[1] for v in self.vectors.values())
        image, text = (self._spread(m, dim) for m in ("image", "text"))
        has = {m: torch.zeros(self.count, dtype=torch.bool).index_fill_(0, self.rows[m], True) for m in self.rows}
        both = has["image"] & has["text"]
        found = torch.where(has["image"][:, None], image, text)
        found[both] = fuse(image[both], text[both], image_weight)
        return found

    @property
    def both(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (B,) of those with an image and a text, and the vectors of these, (B, d) each."""
        place = {m: {row: n for n, row in enumerate(self.rows[m].tolist())} for m in self.rows}
        rows = sorted(place["image"].keys() & place["text"].keys())
        image, text = (self.vectors[m][[place[m][row] for row in rows]] for m in ("image", "text"))
        return torch.tensor(rows, dtype=torch.int64), image, text

    def _spread(self, modality: Modality, dim: int) -> Tensor:
        vectors = self.vectors[modality]
        return torch.zeros(self.count, dim, dtype=vectors.dtype).index_copy_(0, self.rows[modality], vectors)


@dataclass(frozen=True)
class MixScore:
    """ndcg: mean nDCG@10 over the queries; interval: 95 % bootstrap interval over queries; by_kind: mean of the queries
    whose most relevant item is a text, an image or both; per_query: (Q,)."""

    ndcg: float
    interval: tuple[float, float]
    by_kind: Mapping[str, float]
    per_query: Tensor


@dataclass(frozen=True)
class MixResult:
    """Scores of one set by method; queries, items: their numbers."""

    name: str
    queries: int
    items: int
    scores: Mapping[str, MixScore]


def ndcg_at(scores: Tensor, gains: Tensor, k: int = K) -> Tensor:
    """Return nDCG@k of each query, (Q,) float64: sum over the first k of gain / log2(rank + 1), divided by the largest
    possible sum, as trec_eval and mteb compute it.

    scores, gains: (Q, N), gain 0 is not relevant. Of items whose scores are within 1e-6, a relevant one ranks last.
    """
    k = min(k, scores.shape[1])
    discount = 1 / torch.log2(torch.arange(2, k + 2).double())
    top = (scores - 2 * TIE * (gains > 0)).topk(k, dim=1).indices
    gained = (gains.gather(1, top).double() * discount).sum(dim=1)
    best = (gains.topk(k, dim=1).values.double() * discount).sum(dim=1)
    return gained / best.clamp_min(1e-12)


def measure_mixbench(
    model: AlignedModel,
    data: Path | str | Sequence[MixBenchSet],
    *,
    image_weight: float = WEIGHT,
    calibration: PairedFeatures | None = None,
    progress: Progress | None = None,
) -> list[MixResult]:
    """Measure a model with its encoders on the sets of a folder (see datasets.mixbench).

    Each query and item is one vector; those with an image and a text are fused with image_weight. Methods:
    raw: the encoders' vectors, where they share a space; centred: raw minus the mean of the set's query texts, query
    images, corpus texts and corpus images; GR-CLIP: raw minus the means of the `calibration` pairs
    (evaluation.baselines.GRCLIP; see calibration_pairs), if these are given; aligned: of the model. Scores are cosines,
    without calibration.
    Raises InputError for a wrong weight and as read_mixbench does, ImageError for an unreadable image.
    """
    check_image_weight(image_weight)
    sets = read_mixbench(data) if isinstance(data, (str, Path)) else list(data)
    total, done = sum(len(s.queries) + len(s.corpus) for s in sets), 0
    results = []
    for each in sets:
        parts = []
        for items in (each.queries, each.corpus):
            parts.append(encode_parts(model, items))
            done += len(items)
            if progress:
                progress(done, total)
        vectors = vectors_by_method(model, parts[0], parts[1], image_weight, calibration)
        results.append(score_set(each, vectors))
    return results


def encode_parts(model: AlignedModel, items: Sequence[MixItem]) -> Parts:
    """Encode queries or items to encoder features; equal texts are encoded once."""
    rows: dict[Modality, list[int]] = {
        "image": [n for n, item in enumerate(items) if item.image is not None],
        "text": [n for n, item in enumerate(items) if item.text],
    }
    texts = list(dict.fromkeys(items[n].text for n in rows["text"]))
    number = {text: n for n, text in enumerate(texts)}
    images = [image for item in items if (image := item.image) is not None]
    features: dict[Modality, Tensor] = {
        "image": model.features_image(images),
        "text": model.features_text(texts)[[number[items[n].text] for n in rows["text"]]],
    }
    return Parts(len(items), {m: torch.tensor(r, dtype=torch.int64) for m, r in rows.items()}, features)


def calibration_pairs(model: AlignedModel, store: Store) -> PairedFeatures | None:
    """Return raw vectors of the training pairs of a store, of at most MOST images; None if images and texts share no
    raw space."""
    if raw_dim(model.aligner) is None:
        return None
    pairing = store.pairing("train")
    images = spaced(len(pairing.image_rows), MOST)
    place = torch.full((len(pairing.image_rows),), -1).index_copy_(0, images, torch.arange(len(images)))
    owner = place[pairing.text_to_image]
    kept = (owner >= 0).nonzero().flatten()
    return PairedFeatures(
        raw_vectors(model.aligner, "image", store.rows("image", pairing.image_rows[images])),
        raw_vectors(model.aligner, "text", store.rows("text", pairing.text_rows[kept])),
        owner[kept],
        tuple(map(str, images.tolist())),
    )


def vectors_by_method(
    model: AlignedModel,
    queries: Parts,
    corpus: Parts,
    image_weight: float,
    calibration: PairedFeatures | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return unit vectors (Q, d) of the queries and (N, d) of the corpus by method; see measure_mixbench."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    both = (queries, corpus)
    if raw_dim(model.aligner) is not None:
        raw = [part.mapped(lambda m, x: normalize(raw_vectors(model.aligner, m, x), dim=1)) for part in both]
        found["raw"] = raw[0].fused(image_weight), raw[1].fused(image_weight)
        centred = [part.mapped(lambda _, x: normalize(x - x.mean(dim=0), dim=1) if len(x) else x) for part in raw]
        found["centred"] = centred[0].fused(image_weight), centred[1].fused(image_weight)
        if calibration is not None:
            method = GRCLIP.fit(calibration)
            of_queries = replace(method, mean_text=method.mean_query)
            found["GR-CLIP"] = _gr_clip(of_queries, raw[0], image_weight), _gr_clip(method, raw[1], image_weight)
    aligned = [part.mapped(model.align) for part in both]
    found["aligned"] = aligned[0].fused(image_weight), aligned[1].fused(image_weight)
    return found


def _gr_clip(method: GRCLIP, raw: Parts, image_weight: float) -> Tensor:
    """Return the unit vector of each query or item, (N, d). raw: unit rows."""
    found = raw.mapped(lambda m, x: method.image(x) if m == "image" else method.text(x)).fused(image_weight)
    both, image, text = raw.both
    found[both] = method.fused(image, text, image_weight)
    return found


def score_set(data: MixBenchSet, vectors: Mapping[str, tuple[Tensor, Tensor]]) -> MixResult:
    """Score the vectors of queries and corpus by method."""
    column = {item.id: n for n, item in enumerate(data.corpus)}
    gains = torch.zeros(len(data.queries), len(data.corpus))
    for n, query in enumerate(data.queries):
        for item, gain in data.qrels[query.id].items():
            gains[n, column[item]] = gain
    kinds = [data.corpus[int(n)].kind for n in gains.argmax(dim=1)]
    scores = {name: _score(*pair, gains, kinds) for name, pair in vectors.items()}
    return MixResult(data.name, len(data.queries), len(data.corpus), scores)


def _score(queries: Tensor, items: Tensor, gains: Tensor, kinds: Sequence[str]) -> MixScore:
    parts = zip(torch.split(queries, CHUNK), torch.split(gains, CHUNK), strict=True)
    values = torch.cat([ndcg_at(rows @ items.T, gain) for rows, gain in parts])
    counts = draw_counts(len(values), seed=0)
    interval = percentile_interval(resampled_means(values, torch.arange(len(values)), counts))
    by_kind = {}
    for kind in KINDS:
        mask = torch.tensor([each == kind for each in kinds])
        if mask.any():
            by_kind[kind] = float(values[mask].mean())
    return MixScore(float(values.mean()), interval, by_kind, values)


def mixbench_record(results: Sequence[MixResult], image_weight: float) -> dict[str, Any]:
    """Return the results as JSON values; mean: over the sets, by method."""
    methods = list(results[0].scores)
    return {
        "metric": f"ndcg@{K}",
        "image_weight": image_weight,
        "mean": {name: sum(r.scores[name].ndcg for r in results) / len(results) for name in methods},
        "sets": {
            r.name: {
                "queries": r.queries,
                "items": r.items,
                "methods": {
                    name: {"ndcg": s.ndcg, "interval": list(s.interval), "by_kind": dict(s.by_kind)}
                    for name, s in r.scores.items()
                },
            }
            for r in results
        },
        "published_mean": dict(PUBLISHED),
    }
