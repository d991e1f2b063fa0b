"""Photographs without captions: the bundled aligner against the plain bridge, and drawings as a check.

    python benchmarks/photos.py [--store STORE] [--before FOLDER] [--out FILE]

Photographs of Debian packages (photo_sets.py names them). The settings of the bundled aligner were chosen on
`photographs`, the shares of its gate also on `gcompris` and `renders`; no setting was chosen on `named`. No caption of
them was used in training. Each method is scored by text-to-image recall and by image recall@10 in one index of all
photographs, their captions and the captions of the classes (class_captions.txt), the query's own caption left out.

- before: an earlier bundled aligner (--before FOLDER)
- drawings alone: the part of the bundled aligner that is trained on drawings
- bridge: softmax(logits / 2) @ text vectors of the names, both modalities centred on these photographs and captions
- bridge, not centred: the same without centring
- bundled: the bundled aligner

`unseen`: the three sets with names in one index with 5,000 captions (the names, captions of the classes, captions of
drawings); recall@10 in per cent, and its differences with 95 % intervals of a paired bootstrap over queries.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from class_names import ClassTexts, class_texts
from machine import describe
from photo_sets import SHARE, captioned, features, named, named_gcompris, renders, stamps
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner, align
from csaligner.adapters.class_names import ClassNameAdapter, class_probabilities, classifier
from csaligner.evaluation.evaluate import evaluate
from csaligner.model import ASSET
from csaligner.store.store import Store
from csaligner.types import PairedFeatures

UNSEEN = {"named": named, "gcompris": named_gcompris, "renders": renders}
AMONG, CAPTIONS_IN_INDEX = 143, 5000
RESULTS = Path(__file__).parent / "results" / "photos.json"
DRAWING_METRICS = (
    "text_to_image_recall@1",
    "text_to_image_recall@10",
    "image_to_text_recall@1",
    "image_to_text_recall@10",
    "mixed_image_recall@10",
    "gap/centroid",
)


def photo_metrics(model: Aligner, photos: PairedFeatures) -> dict[str, float]:
    """Text-to-image recall and mixed image recall of an aligner on pairs of photograph and caption."""
    metrics = evaluate(align(model, photos), intervals=False).metrics
    names = ("text_to_image_recall@1", "text_to_image_recall@10", "mixed_image_recall@10", "gap/centroid")
    return {name: round(metrics[name], 4) for name in names}


def scores(x: Tensor, y: Tensor, others: Tensor) -> dict[str, float]:
    """Percent. x, y: unit rows of photographs and their captions, (N, d); others: further texts, (M, d)."""
    pairs = y @ x.T
    own = pairs.diagonal()[:, None]
    among = torch.cat([y @ y.T - 4 * torch.eye(len(y)), y @ others.T], dim=1)
    place = (pairs > own).sum(dim=1)
    mixed = place + (among > own).sum(dim=1)
    recall = {f"text_to_image_recall@{k}": float((place < k).float().mean()) for k in (1, 5, 10)}
    recall["dense_mixed_image_recall@10"] = float((mixed < 10).float().mean())
    gap = {"gap/centroid": float((x.mean(dim=0) - y.mean(dim=0)).norm())}
    return {name: round(100 * value, 1) for name, value in recall.items()} | {k: round(v, 3) for k, v in gap.items()}


@torch.inference_mode()
def encoded(
    photos: tuple[Tensor, Tensor], others: Tensor, texts: ClassTexts, models: dict[str, Aligner]
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Unit rows of photographs, captions and further texts with each method. photos: (N, 1280), (N, 384); others:
    (M, 384)."""
    x, y = photos
    unit, more = normalize(y, dim=1), normalize(others, dim=1)
    names = (normalize(texts.kinds["photo"], dim=1) + normalize(texts.kinds["description"], dim=1)) / 2
    bridge = class_probabilities(x, *classifier()) @ names
    mean = unit.mean(dim=0)
    found = {
        "bridge, not centred": (normalize(bridge, dim=1), unit, more),
        "bridge": (
            normalize(bridge - bridge.mean(dim=0), dim=1),
            normalize(unit - mean, dim=1),
            normalize(more - mean, dim=1),
        ),
    }
    for name, model in models.items():
        found[name] = (model.encode_image(x), model.encode_text(y), model.encode_text(others))
        if isinstance(model.image_adapter, ClassNameAdapter):
            drawn = normalize(model.image_adapter.drawings(x), dim=1)
            found[f"{name}, drawings alone"] = (drawn, *found[name][1:])
    return found


def compare(
    photos: tuple[Tensor, Tensor], texts: ClassTexts, models: dict[str, Aligner]
) -> dict[str, dict[str, float]]:
    """Scores of each method on the same photographs (N, 1280) and captions (N, 384)."""
    return {name: scores(*rows) for name, rows in encoded(photos, texts.captions, texts, models).items()}


def unseen(share: Path, drawings: Tensor, texts: ClassTexts, models: dict[str, Aligner]) -> dict[str, object]:
    """Recall@10 on images with names in one index. drawings: further captions (K, 384)."""
    sets = {name: features(found(share)) for name, found in UNSEEN.items()}
    x, y = (torch.cat([pair[side] for pair in sets.values()]) for side in (0, 1))
    kind = torch.cat([torch.full((len(pair[0]),), i) for i, pair in enumerate(sets.values())])
    more = max(0, CAPTIONS_IN_INDEX - len(y) - len(texts.captions))
    others = torch.cat([texts.captions, drawings[torch.randperm(len(drawings), generator=_seeded())[:more]]])
    hits = {name: _hits(*rows) for name, rows in encoded((x, y), others, texts, models).items()}
    result: dict[str, object] = {"images": len(x), "captions": len(y) + len(others)}
    for i, group in enumerate(sets):
        rows = kind == i
        result[group] = {"count": int(rows.sum())} | {
            name: {key: round(100 * float(hit[rows].mean()), 1) for key, hit in found.items()}
            | {f"recall@10 among {AMONG}": _among(encoded_pair[0][rows], encoded_pair[1][rows])}
            for (name, found), encoded_pair in zip(
                hits.items(), (r[:2] for r in encoded((x, y), others, texts, models).values()), strict=True
            )
        }
    result["bundled - other"] = {
        f"{group}, {name}": {key: _difference((hit - found[key])[kind == i]) for key, hit in hits["bundled"].items()}
        for i, group in enumerate(sets)
        for name, found in hits.items()
        if not name.startswith("bundled")
    }
    return result


def _hits(x: Tensor, y: Tensor, others: Tensor) -> dict[str, Tensor]:
    """Whether each caption (N,) finds its image in the first 10, among the images and in the mixed index."""
    pairs = y @ x.T
    own = pairs.diagonal()[:, None]
    among = torch.cat([y @ y.T - 4 * torch.eye(len(y)), y @ others.T], dim=1)
    place = (pairs > own).sum(dim=1)
    return {"recall@10": (place < 10).float(), "mixed": (place + (among > own).sum(dim=1) < 10).float()}


def _among(x: Tensor, y: Tensor, draws: int = 200) -> float:
    """Recall@10 among AMONG of the images (or all, if fewer), mean over random subsets, in per cent."""
    pairs, found, generator = y @ x.T, 0.0, _seeded()
    for _ in range(draws):
        rows = torch.randperm(len(x), generator=generator)[:AMONG]
        part = pairs[rows][:, rows]
        found += float(((part > part.diagonal()[:, None]).sum(dim=1) < 10).float().mean()) / draws
    return round(100 * found, 1)


def _difference(values: Tensor, samples: int = 4000) -> list[float]:
    """Mean and 95 % interval of a paired bootstrap, in points."""
    drawn = np.random.default_rng(0).integers(0, len(values), (samples, len(values)))
    means = 100 * values.numpy()[drawn].mean(axis=1)
    return [round(float(v), 1) for v in (100 * values.mean(), *np.percentile(means, (2.5, 97.5)))]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=Path, default=SHARE, help="where the Debian packages are")
    parser.add_argument("--store", type=Path, help="a store of the datasets `all`, for the check on drawings")
    parser.add_argument("--before", type=Path, help="an earlier bundled aligner")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    models = {"before": Aligner.load(arguments.before)} if arguments.before else {}
    models["bundled"] = Aligner.load(ASSET)
    texts = class_texts()
    result: dict[str, object] = {"machine": describe()}
    for name, found in (("photographs", captioned(arguments.share)), ("stamps", stamps(arguments.share))):
        result[name] = {"count": len(found)} | compare(features(found), texts, models)
    if arguments.store:
        store = Store.open(arguments.store)
        result["unseen"] = unseen(arguments.share, store.features("train").text.float(), texts, models)
        for split in ("val", "test"):
            pairs = store.features(split)
            metrics = {name: evaluate(align(model, pairs), intervals=False).metrics for name, model in models.items()}
            result[f"drawings, {split}"] = {
                name: {key: round(values[key], 4) for key in DRAWING_METRICS} for name, values in metrics.items()
            } | {"count": len(pairs.image)}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
