"""Text-to-image generation on held-out captions: one text adapter per objective, with the same decoder.

    python benchmarks/generation.py --store STORE --work FOLDER --out benchmarks/results/generation.json

STORE: written by `csaligner embed`, of one or several datasets. The settings of each objective are selected on the
validation split with seed 0: the smallest Frechet distance of predicted embeddings among those whose text-to-image R@1
is within RECALL_LEFT of InfoNCE with learnt temperature (or the nearest, if there is none). The selected setting is
trained with every seed, and images are generated for the test split. FOLDER keeps runs and measurements, and the same
command resumes. --decoder none measures only the predicted embeddings. --ship FOLDER saves the text adapters of seed 0
that are bundled for `csaligner generate` and `generate-grid` (assets/micro-priors).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import machine
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from csaligner.comparison.compare import spread_over_processes
from csaligner.config import TrainConfig, build_config
from csaligner.decoders.decoder import Decoder, Sampling, open_decoder
from csaligner.encoders import open_encoder
from csaligner.evaluation.generation import Projection, frechet_distance
from csaligner.files import write_json
from csaligner.generation.evaluate import MeasuringProtocol, Reference, draw, embedding_metrics, picture_features
from csaligner.generation.text import TextToEmbedding
from csaligner.model import AlignedModel
from csaligner.pipeline import train
from csaligner.store.store import Store
from csaligner.types import Encoder, Split

Objective = Mapping[str, Any]
INFONCE, OURS, CEILING = "InfoNCE", "CS-Aligner", "ceiling: true embeddings"
RECALL, FRECHET = "text_to_image_recall@1", "embedding_frechet"
EMBEDDED, DRAWN = "embedded.safetensors", "drawn.safetensors"
SHIPPED = {INFONCE: "infonce", "ECLIPSE": "eclipse", OURS: "cs-aligner"}
RECALL_LEFT = 0.02
SIDE = 32
BOOTSTRAPS = 500


def terms(scale: float | None = None, **weights: float) -> Objective:
    """scale: a fixed logit scale; None: learnt from 1/0.07."""
    return {"terms": weights} | ({"logit_scale": scale, "learn_logit_scale": False} if scale else {})


METHODS: dict[str, Sequence[Objective]] = {
    INFONCE: [terms(info_nce=1.0)],
    "InfoNCE, temperature tuned": [terms(s, info_nce=1.0) for s in (7.0, 10.0, 14.0, 28.0, 12.0, 17.0, 20.0, 40.0)],
    "L2": [terms(paired_l2=1.0)],
    "ECLIPSE": [
        *(terms(paired_l2=1.0, info_nce=w) for w in (0.05, 0.2, 0.5, 1.0)),
        *(terms(14.0, paired_l2=1.0, info_nce=w) for w in (0.2, 0.5, 1.0, 2.0)),
    ],
    "CS alone": [terms(cauchy_schwarz=1.0)],
    OURS: [
        *(terms(info_nce=1.0, cauchy_schwarz=w) for w in (1.0, 2.0, 3.0, 5.0)),
        *(terms(14.0, info_nce=1.0, cauchy_schwarz=w) for w in (0.5, 1.0, 2.0, 3.0)),
    ],
    "CS-Aligner, scale 14, lambda 0.5": [terms(14.0, info_nce=1.0, cauchy_schwarz=0.5)],
    "CS-Aligner, scale 14, lambda 2": [terms(14.0, info_nce=1.0, cauchy_schwarz=2.0)],
    "ECLIPSE + CS": [
        *(terms(paired_l2=1.0, info_nce=0.2, cauchy_schwarz=w) for w in (0.1, 0.3, 1.0, 3.0)),
        *(terms(14.0, paired_l2=1.0, info_nce=1.0, cauchy_schwarz=w) for w in (0.3, 1.0, 2.0, 3.0)),
    ],
}


@dataclass(frozen=True)
class Call:
    """Settings common to all runs."""

    store: Path
    work: Path
    decoder: str
    epochs: int
    batch_size: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Run:
    """One objective with one seed; trial: index of the method's settings."""

    call: Call
    method: str
    trial: int
    seed: int

    @property
    def folder(self) -> Path:
        return self.call.work / f"{self.method.lower().replace(', ', '-').replace(' ', '-')}-{self.trial}-{self.seed}"

    def text(self) -> TextToEmbedding:
        config = build_config(
            TrainConfig,
            {
                "image_adapter": "standardise",
                "text_adapter": {"name": "mlp", "hidden": 128, "dropout": 0.1},
                "objective": METHODS[self.method][self.trial],
                "epochs": self.call.epochs,
                "batch_size": self.call.batch_size,
                "evaluate_every": self.call.epochs,
                "lr": 1e-3,
                "seed": self.seed,
            },
        )
        trained = train(Store.open(self.call.store), config, self.folder)
        return TextToEmbedding(AlignedModel(trained.model, [text_encoder()]))

    def on_validation(self) -> dict[str, float]:
        return kept(self.folder / "val.json", lambda: embedding_metrics(self.text(), reference(self.call.store, "val")))

    def on_test(self) -> dict[str, float]:
        return kept(self.folder / "test.json", self._on_test)

    def _on_test(self) -> dict[str, float]:
        text, real = self.text(), reference(self.call.store, "test")
        project = Projection.fit(text.model.align("image", real.train), MeasuringProtocol().dims or 0)
        directions = text.model.align("text", real.pairs.text)
        pair = {"real": text.model.align("image", real.pairs.image), "predicted": directions}
        save_file({name: project(rows) for name, rows in pair.items()}, self.folder / EMBEDDED)
        values = embedding_metrics(text, real)
        if self.call.decoder != "none":
            raw = text.raw(directions, decoder(self.call.decoder).contract)
            values |= drawn(self.call, raw, self.seed, self.folder)
        return values


def ceiling(call: Call, seed: int) -> dict[str, float]:
    """Generate images from the true embeddings, the upper bound of the decoder."""
    folder = call.work / f"ceiling-{seed}"
    return kept(folder / "test.json", lambda: drawn(call, reference(call.store, "test").pairs.image, seed, folder))


def drawn(call: Call, raw: Tensor, seed: int, folder: Path) -> dict[str, float]:
    """Compare one generated image per row with the real images; caches their projected features in the folder."""
    real = reference(call.store, "test")
    pictures = draw(decoder(call.decoder), raw, Sampling(1, seed, call.steps, call.guidance))
    features = picture_features(real.encoder, pictures)
    assert real.project is not None
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"real": real.project(real.features), "drawn": real.project(features)}, folder / DRAWN)
    return real.measure_features(features)


def kept(path: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the content of the file, or measure and write it."""
    if not path.exists():
        write_json(path, measure())
    found: dict[str, float] = json.loads(path.read_text())
    return found


@lru_cache(maxsize=2)
def reference(store: Path, split: Split) -> Reference:
    return Reference(Store.open(store), open_encoder("bundled:efficientnet-lite0"), SIDE, MeasuringProtocol(split))


@lru_cache(maxsize=1)
def text_encoder() -> Encoder:
    return open_encoder("bundled:all-MiniLM-L6-v2")


@lru_cache(maxsize=1)
def decoder(name: str) -> Decoder:
    return open_decoder(name)


def choose(trials: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, int]:
    """Select the trial of each method by the rule in the module docstring."""
    enough = trials[INFONCE][0][RECALL] - RECALL_LEFT

    def rank(trial: Mapping[str, float]) -> tuple[float, float]:
        return max(0.0, enough - trial[RECALL]), trial[FRECHET]

    return {name: min(range(len(tried)), key=lambda i: rank(tried[i])) for name, tried in trials.items()}


def effective_dimension(x: Tensor) -> float:
    """Return (tr C)^2 / tr C^2 of the covariance C of the rows, their effective dimension."""
    covariance = torch.cov(x.double().T)
    return float(covariance.trace() ** 2 / covariance.square().sum())


def differences(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Return our distance minus that of each baseline, mean over seeds, with 95 % intervals of a bootstrap over test
    images, resampled identically for all methods and the real images."""
    found: dict[str, Any] = {}
    for key, file, made in ((FRECHET, EMBEDDED, "predicted"), ("fid", DRAWN, "drawn")):
        if not (runs[OURS][0].folder / file).exists():
            continue
        samples = {name: [load_file(r.folder / file) for r in method] for name, method in runs.items()}
        generator = torch.Generator().manual_seed(0)
        n = len(samples[OURS][0]["real"])
        whole = torch.arange(n)
        rows = [whole] + [torch.randint(0, n, (n,), generator=generator) for _ in range(BOOTSTRAPS)]
        values = {name: torch.tensor([_mean(seeds, made, r) for r in rows]) for name, seeds in samples.items()}
        for name in runs:
            if name != OURS:
                difference = values[OURS] - values[name]
                low, high = difference[1:].quantile(torch.tensor([0.025, 0.975])).tolist()
                found.setdefault(name, {})[key] = {"difference": float(difference[0]), "low": low, "high": high}
    return found


def _mean(seeds: Sequence[Mapping[str, Tensor]], made: str, rows: Tensor) -> float:
    return statistics.fmean(frechet_distance(s["real"][rows], s[made][rows]) for s in seeds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--decoder", default="micro")
    parser.add_argument("--ship", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.5)
    args = parser.parse_args()
    call = Call(args.store, args.work, args.decoder, args.epochs, args.batch_size, args.steps, args.guidance)
    spread = partial(spread_over_processes, jobs=args.jobs)
    tries = [Run(call, name, trial, 0) for name, settings in METHODS.items() for trial in range(len(settings))]
    found = spread(Run.on_validation, [(run,) for run in tries], report=partial(_say, "validation"))
    trials: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for run, values in zip(tries, found, strict=True):
        trials[run.method].append(values)
    chosen = choose(trials)
    runs = {name: [Run(call, name, chosen[name], seed) for seed in range(args.seeds)] for name in METHODS}
    flat = [run for method in runs.values() for run in method]
    measured = spread(Run.on_test, [(run,) for run in flat], report=partial(_say, "test"))
    methods: dict[str, dict[str, Any]] = {
        name: {
            "objective": METHODS[name][chosen[name]],
            "seeds": [v for run, v in zip(flat, measured, strict=True) if run.method == name],
            "trials": [{"objective": o, **t} for o, t in zip(METHODS[name], trials[name], strict=True)],
        }
        for name in METHODS
    }
    pairs = reference(args.store, "test").pairs
    for name, (run, *_) in runs.items():
        predicted = run.text().model.align("text", pairs.text)
        methods[name]["effective_dimension"] = effective_dimension(predicted)
    if call.decoder != "none":
        best = spread(ceiling, [(call, seed) for seed in range(args.seeds)], report=partial(_say, "ceiling"))
        real = runs[OURS][0].text().model.align("image", pairs.image)
        methods[CEILING] = {"objective": None, "seeds": best, "trials": []}
        methods[CEILING]["effective_dimension"] = effective_dimension(real)
    store = Store.open(args.store)
    content = {
        "machine": machine.describe(),
        "dataset": store.dataset,
        "n_captions": len(pairs.image),
        "picture_side": SIDE,
        "features": "bundled:efficientnet-lite0, pictures scaled up from 32 px; Frechet in 64 principal dimensions",
        "settings": {k: str(v) for k, v in vars(args).items() if k not in {"out", "work", "store", "decoder", "ship"}},
        "decoder": Path(args.decoder).name,
        "methods": methods,
        "differences": differences(runs),
    }
    machine.write(args.out, content)
    if args.ship:
        for name, folder in SHIPPED.items():
            runs[name][0].text().model.aligner.half().save(args.ship / folder)


def _say(stage: str, done: int, total: int) -> None:
    print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
