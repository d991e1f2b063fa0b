"""Search by text in collections of texts, images and items with both, made of drawings with two texts each.

    python benchmarks/mixed_collection.py STORE [STORE ...] [--out benchmarks/results/mixed_collection.json]

STORE: a store of openmoji or openclipart with the bundled encoders. Five folds by group; the aligner is trained with
the default settings on four of them. In the fifth, every image with two texts is an item: a third of the items are the
second text, a third the image, a third both as one vector. The query is the first text, its item the only right one.
OpenMoji: the first two captions; Open Clip Art: title and keywords, from one caption. Three random assignments of the
thirds; the nDCG@10 of a query is their mean. Intervals: bootstrap over the queries of all folds; paired in differences.

Methods: raw: the encoders have different widths, so these are the vectors of the untrained map without its means;
centred: minus the means of the collection; GR-CLIP: minus the means of the training pairs (evaluation/baselines);
aligned; aligned, calibrated: scores as in `csaligner index --fuse`. weights: nDCG@10 of the queries whose item is both,
by the weight of the image, and for the weight chosen on a tenth of the training groups, which is not trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.fusion import WEIGHT, choose_image_weight
from csaligner.encoders import TEXT_ENCODER, open_encoder
from csaligner.estimator import CSAligner
from csaligner.evaluation.bootstrap import draw_counts, percentile_interval, resampled_means
from csaligner.model import AlignedModel
from csaligner.paired_features import rows_of
from csaligner.run_folder import provenance
from csaligner.search.calibration import Calibration
from csaligner.search.lance_table import ItemKind
from csaligner.search.mixbench import Parts, ndcg_at, vectors_by_method
from csaligner.search.vector_spaces import raw_vectors
from csaligner.store.store import Store
from csaligner.types import Modality, PairedFeatures

OUT = Path(__file__).parent / "results" / "mixed_collection.json"
FOLDS, ASSIGNMENTS, VALIDATION = 5, 3, 10
KINDS = ("text", "image", "both")
WEIGHTS = (0.0, 0.5, 1.0)
METHODS = ("raw", "centred", "GR-CLIP", "aligned", "aligned, calibrated")


@dataclass(frozen=True)
class Drawings:
    """image: (N, d_image) of images with two texts; query, document: (N, d_text) of these; groups: (N,)."""

    image: Tensor
    query: Tensor
    document: Tensor
    groups: tuple[str, ...]

    def of(self, rows: Sequence[int]) -> Drawings:
        found = torch.tensor(rows)
        return Drawings(
            self.image[found], self.query[found], self.document[found], tuple(self.groups[row] for row in rows)
        )


def two_texts(dataset: str, captions: Sequence[str]) -> tuple[str, str] | None:
    """Return the text that is searched for and the text of the item, None if there is only one."""
    if dataset == "openclipart":
        title, _, keywords = captions[0].partition(", ")
        return (title, keywords) if "," in keywords else None
    return (captions[0], captions[1]) if len(captions) > 1 else None


def read(store: Store) -> tuple[PairedFeatures, tuple[str, ...], Drawings]:
    """Return all pairs, the group of each image, and the drawings with two texts."""
    pairs = store.features()
    assert pairs.captions is not None
    groups = tuple(store.groups(store.pairing().image_rows))
    captions: dict[int, list[str]] = {}
    for caption, image in zip(pairs.captions, pairs.text_to_image.tolist(), strict=True):
        captions.setdefault(image, []).append(caption)
    texts = {image: found for image, mine in captions.items() if (found := two_texts(store.dataset, mine))}
    encoder = open_encoder(TEXT_ENCODER, "text")
    query, document = (encode(encoder, [pair[side] for pair in texts.values()]) for side in (0, 1))
    return pairs, groups, Drawings(pairs.image[list(texts)], query, document, tuple(groups[image] for image in texts))


def encode(encoder: Any, texts: Sequence[str]) -> Tensor:
    ready = [encoder.prepare(text) for text in texts]
    return torch.cat([encoder.encode(ready[n : n + 256]).float() for n in range(0, len(ready), 256)])


def without(pairs: PairedFeatures, groups: Sequence[str], left_out: set[str]) -> tuple[PairedFeatures, list[str]]:
    """Return the pairs of the other groups, and the groups of their images."""
    kept = [n for n, group in enumerate(groups) if group not in left_out]
    return rows_of(pairs, torch.tensor(kept)), [groups[n] for n in kept]


def folds(groups: Sequence[str]) -> Iterator[tuple[set[str], set[str]]]:
    """Yield the groups of the test part and of the validation part."""
    names = np.array(sorted(set(groups)))
    order = names[np.random.RandomState(0).permutation(len(names))]
    for fold in range(FOLDS):
        test = set(order[fold::FOLDS].tolist())
        rest = [name for name in order.tolist() if name not in test]
        yield test, set(rest[::VALIDATION])


def collection(data: Drawings, kinds: Sequence[str]) -> Parts:
    """Return the items: their text, their image or both."""
    image = torch.tensor([n for n, kind in enumerate(kinds) if kind != "text"])
    text = torch.tensor([n for n, kind in enumerate(kinds) if kind != "image"])
    vectors: dict[Modality, Tensor] = {"image": data.image[image], "text": data.document[text]}
    return Parts(len(kinds), {"image": image, "text": text}, vectors)


def asked(data: Drawings) -> Parts:
    count = len(data.query)
    rows: dict[Modality, Tensor] = {"image": torch.empty(0, dtype=torch.int64), "text": torch.arange(count)}
    return Parts(count, rows, {"image": data.image[:0], "text": data.query})


def calibrated(scores: Tensor, items: Tensor, parts: Parts, kinds: Sequence[str]) -> Tensor:
    """Return the scores of an index of these aligned items. parts: their aligned vectors."""
    columns = {kind: [n for n, each in enumerate(kinds) if each == kind] for kind in KINDS}
    _, image, text = parts.both
    names: dict[str, ItemKind] = {"image": "image", "text": "text", "both": "fused"}
    calibration = Calibration.fit(
        {name: items[columns[kind]] for kind, name in names.items()}, {"image": image, "text": text}
    )
    found = scores.clone()
    if calibration is not None:
        for kind, name in names.items():
            found[:, columns[kind]] = calibration.apply("text", name, scores[:, columns[kind]])
    return found


def chosen_weight(model: AlignedModel, data: Drawings) -> float:
    aligned = model.align("image", data.image), model.align("text", data.document), model.align("text", data.query)
    return choose_image_weight(*aligned).image_weight


def measure_fold(
    pairs: PairedFeatures, groups: Sequence[str], data: Drawings, test: set[str], validation: set[str]
) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], float]:
    """Return nDCG@10 of each query by method, (Q,); the share of its assignments in each kind, (Q, 3); nDCG@10 of
    those with both by weight; and the chosen weight."""
    train, train_groups = without(pairs, groups, test | validation)
    model = AlignedModel(CSAligner(seed=0, verbose=False).fit_features(train, groups=train_groups).model.cpu())
    vectors_of = partial(raw_vectors, model.aligner)
    means = replace(train, image=vectors_of("image", train.image), text=vectors_of("text", train.text))
    weight = chosen_weight(model, data.of([n for n, group in enumerate(data.groups) if group in validation]))
    here = data.of([n for n, group in enumerate(data.groups) if group in test])
    count, queries = len(here.query), asked(here)
    gains = torch.eye(count)
    sums: dict[str, Tensor] = {}
    by_kind, by_weight = torch.zeros(count, 3), dict.fromkeys((*map(str, WEIGHTS), "chosen"), torch.zeros(0))
    per_kind = {name: torch.zeros(count, 3, dtype=torch.float64) for name in METHODS}
    for seed in range(ASSIGNMENTS):
        order = np.random.RandomState(seed).permutation(count)
        kinds = [KINDS[place % 3] for place in np.argsort(order)]
        items = collection(here, kinds)
        vectors = vectors_by_method(model, queries, items, WEIGHT, means)
        scores = {name: q @ i.T for name, (q, i) in vectors.items()}
        aligned = items.mapped(model.align)
        scores["aligned, calibrated"] = calibrated(scores["aligned"], vectors["aligned"][1], aligned, kinds)
        column = torch.tensor([KINDS.index(kind) for kind in kinds])
        by_kind += torch.nn.functional.one_hot(column, 3)
        for name in METHODS:
            found = ndcg_at(scores[name], gains)
            sums[name] = sums.get(name, 0) + found / ASSIGNMENTS
            per_kind[name][torch.arange(count), column] += found
        both = column == 2
        for label, value in (*((str(w), w) for w in WEIGHTS), ("chosen", weight)):
            fused = aligned.fused(value)
            found = ndcg_at(normalize(model.align("text", here.query), dim=1) @ fused.T, gains)[both]
            by_weight[label] = torch.cat([by_weight[label], found])
    return {**sums, **{f"{n}/kinds": v for n, v in per_kind.items()}}, by_kind, by_weight, weight


def estimate(values: Tensor) -> dict[str, Any]:
    """Return the mean and its bootstrap interval over queries."""
    counts = draw_counts(len(values), seed=0)
    means = resampled_means(values, torch.arange(len(values)), counts)
    return {"value": float(values.mean()), "interval": list(percentile_interval(means))}


def measure(path: Path) -> dict[str, Any]:
    store = Store.open(path)
    pairs, groups, data = read(store)
    found: list[Any] = [measure_fold(pairs, groups, data, *parts) for parts in folds(groups)]
    values = {name: torch.cat([each[0][name] for each in found]) for name in found[0][0]}
    shares = torch.cat([each[1] for each in found])
    methods: dict[str, Mapping[str, Any]] = {}
    for name in METHODS:
        kinds = values[f"{name}/kinds"].sum(dim=0) / shares.sum(dim=0)
        methods[name] = {
            **estimate(values[name]),
            "by_kind": dict(zip(KINDS, kinds.tolist(), strict=True)),
            "aligned_minus": estimate(values["aligned"] - values[name]),
        }
    weights = {label: estimate(torch.cat([each[2][label] for each in found])) for label in found[0][2]}
    middle = torch.cat([each[2]["0.5"] for each in found])
    for label, record in weights.items():
        record["half_minus"] = estimate(middle - torch.cat([each[2][label] for each in found]))
    return {
        "items": len(values["aligned"]),
        "per_collection": [len(each[0]["aligned"]) for each in found],
        "methods": methods,
        "weights_of_both": weights,
        "chosen_weights": [each[3] for each in found],
        "sha256": store.sha256,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = {Store.open(path).dataset: measure(path) for path in options.stores}
    machine.write(options.out, {"folds": FOLDS, "assignments": ASSIGNMENTS, "collections": found, **provenance(0)})


if __name__ == "__main__":
    main()
