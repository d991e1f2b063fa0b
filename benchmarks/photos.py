"""Photographs without captions: the bundled aligner against the plain bridge, and drawings as a check.

    python benchmarks/photos.py [--store STORE] [--before FOLDER] [--out FILE]

Photographs of Debian packages (photo_sets.py names them) with captions that no aligner has seen; the settings of the
bundled aligner were chosen on these photographs, so they show differences between methods, not what other photographs
give. Each method is scored by text-to-image recall and by image recall@10 in one index of all photographs, their
captions and the captions of the classes (class_captions.txt), the query's own caption left out.

- before: an earlier bundled aligner (--before FOLDER)
- drawings alone: the part of the bundled aligner that is trained on drawings
- bridge: softmax(logits / 2) @ text vectors of the names, both modalities centred on these photographs and captions
- bridge, not centred: the same without centring
- bundled: the bundled aligner
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from class_names import ClassTexts, class_texts
from machine import describe
from photo_sets import SHARE, captioned, features, stamps
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner, align
from csaligner.adapters.class_names import ClassNameAdapter, class_probabilities, classifier
from csaligner.evaluation.evaluate import evaluate
from csaligner.model import ASSET
from csaligner.store.store import Store
from csaligner.types import PairedFeatures

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
def compare(
    photos: tuple[Tensor, Tensor], texts: ClassTexts, models: dict[str, Aligner]
) -> dict[str, dict[str, float]]:
    """Scores of each method on the same photographs (N, 1280) and captions (N, 384)."""
    x, y = photos
    unit = normalize(y, dim=1)
    names = (normalize(texts.kinds["photo"], dim=1) + normalize(texts.kinds["description"], dim=1)) / 2
    bridge, others = class_probabilities(x, *classifier()) @ names, normalize(texts.captions, dim=1)
    found = {"bridge, not centred": scores(normalize(bridge, dim=1), unit, others)}
    mean = unit.mean(dim=0)
    found["bridge"] = scores(
        normalize(bridge - bridge.mean(dim=0), dim=1), normalize(unit - mean, dim=1), normalize(others - mean, dim=1)
    )
    for name, model in models.items():
        encoded = model.encode_image(x), model.encode_text(y), model.encode_text(texts.captions)
        found[name] = scores(*encoded)
        if isinstance(model.image_adapter, ClassNameAdapter):
            drawn = normalize(model.image_adapter.drawings(x), dim=1)
            found[f"{name}, drawings alone"] = scores(drawn, *encoded[1:])
    return found


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
