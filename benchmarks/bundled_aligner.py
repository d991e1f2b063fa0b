"""Training of the bundled aligner, with its model card.

    python benchmarks/bundled_aligner.py [--store STORE] [--work FOLDER]

Trains the default config on the train split of OpenMoji, Tux Paint and Open Clip Art with the bundled encoders,
rounds the weights to half precision and evaluates the rounded model on the test split.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from csaligner.adapters.aligner import Aligner, align
from csaligner.config import StartConfig, TrainConfig
from csaligner.evaluation.evaluate import evaluate
from csaligner.files import write_text
from csaligner.model import ASSET
from csaligner.pipeline import embed_dataset, train
from csaligner.store.store import Store

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

- **Trained with** `python benchmarks/bundled_aligner.py`: the default config (InfoNCE + D_CS), seed {seed},
  {steps} steps.
- **Data**: the train splits of OpenMoji (CC BY-SA 4.0), Tux Paint stamps (GPL-2.0-or-later and public domain) and
  Open Clip Art (public domain): {n_images} images and {n_captions} captions. The test splits were not used.
- **Weights**: `model.safetensors`, half precision, {megabytes:.1f} MB; `config.json` names both encoders' fingerprints.
- **Licence**: CC BY-SA 4.0, as OpenMoji's.
- **Good for** drawings, icons and clip art with short English captions. It was not trained on photographs or long
  texts; train your own aligner for those, which takes minutes.

On the test split ({test_images} images, {test_captions} captions), cosines without calibration:

| metric | value |
| --- | --- |
{rows}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="an existing store of all three datasets (default: embed them)")
    parser.add_argument("--work", type=Path, help="folder for the store and the run")
    parser.add_argument("--out", type=Path, default=ASSET)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp())
    store = Store.open(arguments.store) if arguments.store else embed_dataset("all", work / "store")
    config = TrainConfig(start=StartConfig(kind="auto"), gate=False)
    run = train(store, config, work / "run")
    run.model.save(arguments.out)
    weights = arguments.out / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(weights).items()}, weights)

    test = store.features("test")
    metrics = evaluate(align(Aligner.load(arguments.out), test), intervals=False).metrics
    counts = store.counts
    shape = run.model.config
    card = CARD.format(
        dim=shape.dim,
        dim_image=shape.dim_image,
        dim_text=shape.dim_text,
        seed=config.seed,
        steps=int(run.history[-1].get("step", 0)) if run.history else 0,
        n_images=counts["train"][0],
        n_captions=counts["train"][1],
        megabytes=weights.stat().st_size / 1e6,
        test_images=counts["test"][0],
        test_captions=counts["test"][1],
        rows="\n".join(f"| {name} | {metrics[name]:.3f} |" for name in SHOWN),
    )
    write_text(arguments.out / "README.md", card)
    print(json.dumps({name: round(metrics[name], 4) for name in SHOWN}, indent=1))


if __name__ == "__main__":
    main()
