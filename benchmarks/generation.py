"""Text to image on held-out captions: the same text adapter trained with each objective, then one decoder.

    python benchmarks/generation.py --store STORE --work FOLDER --out benchmarks/results/generation.json

STORE: what `csaligner embed --train-data openmoji` wrote. FOLDER keeps the trained runs. --decoder none measures the
predicted embeddings alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import machine
import torch

from csaligner.config import TrainConfig, build_config
from csaligner.data.store import Store
from csaligner.decoders.door import Sampling, open_decoder
from csaligner.encoders import open_encoder
from csaligner.generation.evaluate import MeasuringProtocol, Reference, draw, embedding_metrics
from csaligner.generation.text import TextToEmbedding
from csaligner.runs import train

METHODS: dict[str, dict[str, float]] = {
    "InfoNCE": {"info_nce": 1.0},
    "L2": {"paired_l2": 1.0},
    "ECLIPSE": {"paired_l2": 1.0, "info_nce": 0.2},
    "CS alone": {"cauchy_schwarz": 1.0},
    "CS-Aligner": {"info_nce": 1.0, "cauchy_schwarz": 1.0},
    "CS-Aligner, lambda 10": {"info_nce": 1.0, "cauchy_schwarz": 10.0},
    "ECLIPSE + 0.3 CS": {"paired_l2": 1.0, "info_nce": 0.2, "cauchy_schwarz": 0.3},
}
SIDE = 32


def settings(terms: dict[str, float], seed: int, epochs: int) -> TrainConfig:
    return build_config(
        TrainConfig,
        {
            "image_adapter": "standardise",
            "text_adapter": {"name": "mlp", "hidden": 128, "dropout": 0.1},
            "objective": {"terms": terms},
            "epochs": epochs,
            "evaluate_every": epochs,
            "lr": 1e-3,
            "seed": seed,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--decoder", default="micro")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    store = Store.open(args.store)
    protocol = MeasuringProtocol(limit=args.limit)
    reference = Reference(store, open_encoder("bundled:efficientnet-lite0"), SIDE, protocol)
    text_encoder = open_encoder("bundled:all-MiniLM-L6-v2")
    decoder = None if args.decoder == "none" else open_decoder(args.decoder)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for name, terms in METHODS.items():
        for seed in range(args.seeds):
            folder = args.work / f"{name.lower().replace(' ', '-')}-{seed}"
            model = train(store, settings(terms, seed, args.epochs), folder).model
            text = TextToEmbedding(model, text_encoder)
            values = embedding_metrics(text, reference)
            if decoder is not None:
                raw = text.raw(model.encode_text(reference.pairs.text).detach(), decoder.contract)
                sampling = Sampling(1, seed, args.steps, args.guidance)
                values |= reference.measure(draw(decoder, raw, sampling))
            found[name].append(values)
            print(name, seed, {k: round(v, 4) for k, v in values.items()}, file=sys.stderr, flush=True)
    ceiling = []
    if decoder is not None:
        for seed in range(args.seeds):
            sampling = Sampling(1, seed, args.steps, args.guidance)
            ceiling.append(reference.measure(draw(decoder, reference.pairs.image, sampling)))
    write(args, {**found, "ceiling: true embeddings": ceiling}, len(reference.pairs.image))


def write(args: argparse.Namespace, found: dict[str, list[dict[str, float]]], n: int) -> None:
    """Mean and standard deviation over seeds of every number, and the numbers themselves."""
    methods: dict[str, Any] = {}
    for name, seeds in found.items():
        summary = {}
        for key in seeds[0] if seeds else ():
            values = [s[key] for s in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            summary[key] = {"mean": statistics.fmean(values), "sd": spread}
        methods[name] = {"terms": METHODS.get(name), "summary": summary, "seeds": seeds}
    content = {
        "machine": machine.describe(),
        "n_captions": n,
        "picture_side": SIDE,
        "features": "bundled:efficientnet-lite0, pictures scaled up from 32 px; Frechet in 64 principal dimensions",
        "settings": {k: str(v) for k, v in vars(args).items() if k not in {"out", "work", "store", "decoder"}},
        "decoder": args.decoder if "/" not in str(args.decoder) else Path(args.decoder).name,
        "methods": methods,
    }
    machine.write(args.out, content)


if __name__ == "__main__":
    main()
