"""How often a query without an answer is taken to have one: csaligner.search.unanswered on real held-out queries.

    python benchmarks/unanswered.py --store STORE [--clip FILE] [--seeds 10] [--out FILE]

STORE has the images of OpenMoji, Tux Paint and Open Clip Art (benchmarks/run_tables.py makes it); FILE is
clip_coco_500.npy, (2, 500, 512). For each source and seed, a third of the images with their captions fits the aligner,
a third is the index, and a third are queries whose images and captions are not in the index; without an aligner
(CLIP), half is the index. A false alarm is a query without an answer with chance <= 0.05. "found" is the fraction of
queries with an answer with chance <= 0.05: captions of the index whose own row is taken out, their image remains.

Weak results: of queries with an answer, the fraction whose own answer is weak (too strict), and of queries without an
answer the fraction whose best result is not weak (too lenient), for each rule of what is weak: chance above a level,
or not above the 0.9 quantile of queries of nonsense. The same for 20 texts about things that such collections show and
20 about other subjects, which were written before the results were seen, in an index of the whole source.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table_text import RESULTS
from torch import Tensor
from torch.nn.functional import normalize

from csaligner import CSAligner
from csaligner.adapters.fusion import fuse
from csaligner.encoders import open_encoder
from csaligner.files import write_json
from csaligner.paired_features import rows_of
from csaligner.run_folder import provenance
from csaligner.search.calibration import Calibration
from csaligner.search.index import Kind
from csaligner.search.unanswered import LEVEL, Items, best_without_answer, chance, limit
from csaligner.search.weak import QUANTILE, WEAK_CHANCE, nonsense_images, nonsense_texts
from csaligner.store.store import Store
from csaligner.types import Modality, PairedFeatures

SOURCES = ("openmoji", "tuxpaint", "openclipart")
KINDS: Mapping[str, Kind] = {"text": "text", "image": "image", "both 0.5": 0.5}
LEVELS = (0.05, 0.5, WEAK_CHANCE)
SUBJECTS: Mapping[str, Sequence[str]] = {
    "shown": (
        "a boat on the water", "a red apple", "a cat", "a dog running", "a bunch of flowers", "an airplane", "a car",
        "a chair", "a bird on a branch", "a butterfly", "a guitar", "a slice of pizza", "a tree", "a house", "a fish",
        "a horse", "a snowman", "a clock", "a hat", "a dinosaur",
    ),
    "other": (
        "interest rate swaps", "quarterly tax return", "a contract between two companies",
        "how to install a printer driver", "the parliament of Norway", "a lecture on quantum field theory",
        "database index corruption", "the history of the Roman senate", "nuclear reactor cooling",
        "stock market crash", "an x-ray of a lung", "sewing pattern for a wedding dress", "kernel panic",
        "minutes of the board meeting", "football league results", "a phone bill", "criminal law",
        "the philosophy of Kant", "mortgage refinancing", "genome sequencing",
    ),
}  # fmt: skip


def of_source(features: PairedFeatures, name: str) -> PairedFeatures:
    return rows_of(features, torch.tensor([n for n, own in enumerate(features.image_ids) if own.startswith(name)]))


def items_of(image: Tensor, text: Tensor, owners: Tensor, first: int) -> dict[Modality, Items]:
    """Return unit rows with a group per image, counted from `first`."""
    groups = torch.arange(len(image)) + first
    return {"image": Items(image, groups), "text": Items(text, groups[owners])}


def queries_of(items: Mapping[Modality, Items], kind: Kind) -> Items:
    if not isinstance(kind, float):
        return items[kind]
    image, text = items["image"], items["text"]
    rows = text.groups - image.groups[0]
    return Items(fuse(image.vectors[rows], text.vectors, kind), text.groups)


def of_answers(index: Mapping[Modality, Items], kind: Kind, calibration: Calibration | None) -> Tensor:
    """Scores of each query's own answer: of a caption its image, of an image its best caption, of both its image."""
    queries = queries_of(index, kind)
    item: Modality = "text" if kind == "image" else "image"
    shares: dict[Modality, float] = {"image": kind, "text": 1 - kind} if isinstance(kind, float) else {kind: 1.0}
    cosines = queries.vectors @ index[item].vectors.T
    best = cosines.masked_fill(queries.groups[:, None] != index[item].groups, -torch.inf).amax(dim=1)
    return calibration.apply_shares(shares, item, best) if calibration else best


def measure(
    index: dict[Modality, Items], new: dict[Modality, Items], nonsense: Mapping[Modality, Tensor] | None
) -> dict[str, Any]:
    """Return false alarms and weak results of each kind of query. nonsense: encoded and aligned."""
    calibration = Calibration.fit({m: i.vectors for m, i in index.items()})
    found: dict[str, Any] = {"items": {m: len(i.groups) for m, i in index.items()}}
    for name, kind in KINDS.items():
        known = best_without_answer(queries_of(index, kind), index, kind, calibration)
        asked = best_without_answer(queries_of(new, kind), index, kind, calibration)
        answers = of_answers(index, kind, calibration)
        best = torch.maximum(known, answers)
        limits = {f"chance {level:g}": limit(known, level) for level in LEVELS}
        if nonsense is not None:
            limits["nonsense"] = nonsense_limit(index, nonsense, kind, calibration)
        found[name] = {
            "queries": len(asked),
            "false_alarms": mean([chance(float(s), known) <= LEVEL for s in asked]),
            "found": mean([chance(float(s), known) <= LEVEL for s in best]),
            "answer_weak": {rule: float((answers <= at).float().mean()) for rule, at in limits.items()},
            "no_answer_strong": {rule: float((asked > at).float().mean()) for rule, at in limits.items()},
        }
    return found


def nonsense_limit(
    index: Mapping[Modality, Items], nonsense: Mapping[Modality, Tensor], kind: Kind, calibration: Calibration | None
) -> float:
    if isinstance(kind, float):
        images = nonsense["image"]
        vectors = fuse(images[torch.arange(len(nonsense["text"])) % len(images)], nonsense["text"], kind)
    else:
        vectors = nonsense[kind]
    queries = Items(vectors, torch.full((len(vectors),), -1))
    return float(best_without_answer(queries, index, kind, calibration).quantile(QUANTILE))


def mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def encoded(texts: Sequence[str]) -> Tensor:
    encoder = open_encoder("bundled:all-MiniLM-L6-v2", "text")
    with torch.inference_mode():
        return encoder.encode([encoder.prepare(each) for each in texts])


def encoded_nonsense() -> dict[Modality, Tensor]:
    encoder = open_encoder("bundled:efficientnet-lite0", "image")
    with torch.inference_mode():
        images = encoder.encode([encoder.prepare(each) for each in nonsense_images()])
    return {"image": images, "text": encoded(nonsense_texts())}


def aligned(aligner: CSAligner, modality: Modality, rows: Tensor) -> Tensor:
    return torch.from_numpy((aligner.transform_image if modality == "image" else aligner.transform_text)(rows))


def indexed(aligner: CSAligner, features: PairedFeatures, first: int = 0) -> dict[Modality, Items]:
    image, text = aligned(aligner, "image", features.image), aligned(aligner, "text", features.text)
    return items_of(image, text, features.text_to_image, first)


def with_aligner(features: PairedFeatures, nonsense: Mapping[Modality, Tensor], seed: int) -> dict[str, Any]:
    fitted, known, asked = (rows_of(features, rows) for rows in parts_of(len(features.image), seed, 3))
    aligner = CSAligner(epochs=0, seed=seed).fit_features(fitted)
    placed = {m: aligned(aligner, m, rows) for m, rows in nonsense.items()}
    return measure(indexed(aligner, known), indexed(aligner, asked, 10**6), placed)


def subjects(features: PairedFeatures, nonsense: Mapping[Modality, Tensor]) -> dict[str, Any]:
    """Return the fraction of texts of each subject whose best result is not weak, by rule."""
    aligner = CSAligner(epochs=0, seed=0).fit_features(features)
    index = indexed(aligner, features)
    calibration = Calibration.fit({m: i.vectors for m, i in index.items()})
    known = best_without_answer(index["text"], index, "text", calibration)
    placed = {m: aligned(aligner, m, rows) for m, rows in nonsense.items()}
    limits = {f"chance {level:g}": limit(known, level) for level in LEVELS}
    limits["nonsense"] = nonsense_limit(index, placed, "text", calibration)
    found = {}
    for name, texts in SUBJECTS.items():
        rows = Items(aligned(aligner, "text", encoded(texts)), torch.full((len(texts),), -1))
        best = best_without_answer(rows, index, "text", calibration)
        found[name] = {rule: float((best > at).float().mean()) for rule, at in limits.items()}
    return found


def without_aligner(image: Tensor, text: Tensor, seed: int) -> dict[str, Any]:
    index, new = (
        items_of(image[rows], text[rows], torch.arange(len(rows)), first)
        for rows, first in zip(parts_of(len(image), seed, 2), (0, 10**6), strict=True)
    )
    return measure(index, new, None)


def parts_of(n: int, seed: int, parts: int) -> list[Tensor]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return [part.sort().values for part in torch.tensor_split(order, parts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "unanswered.json")
    args = parser.parse_args()
    about = provenance(args.seeds - 1)
    features, nonsense, records, about_subjects = Store.open(args.store).features(), encoded_nonsense(), [], {}
    for source in SOURCES:
        own = of_source(features, source)
        about_subjects[source] = subjects(own, nonsense)
        for seed in range(args.seeds):
            records.append({"source": source, "seed": seed} | with_aligner(own, nonsense, seed))
            print(source, seed, {name: records[-1][name]["false_alarms"] for name in KINDS}, flush=True)
    if args.clip:
        image, text = (normalize(torch.from_numpy(rows).float(), dim=1) for rows in np.load(args.clip))
        records += [{"source": args.clip.stem, "seed": s} | without_aligner(image, text, s) for s in range(args.seeds)]
    write_json(args.out, about | {"level": LEVEL, "subjects": about_subjects, "records": records})


if __name__ == "__main__":
    main()
