"""Text to image on held-out captions: one text adapter trained with each objective, drawn by the micro decoder.

    csaligner embed --data all --image-encoder bundled:efficientnet-lite0-layout --out STORE
    csaligner embed --data all --image-encoder bundled:efficientnet-lite0 --out FEATURES
    python benchmarks/generation.py --store STORE --features FEATURES --work FOLDER \\
        --out benchmarks/results/generation.json

FEATURES: the features that FID, KID, CMMD and the cosine are computed from. The settings of each objective in METHODS
are judged on the validation split with seed 0: the smallest Frechet distance of predicted embeddings among those whose
text-to-image R@1 is within RECALL_LEFT of InfoNCE's with its learnt temperature (where none is, the nearest to it).
Only then is anything of the test split drawn: OpenMoji's test emoji from their true embeddings and from predictions in
two columns, raw, and put back among real training embeddings (`snapped`). --whole also draws all test images from
their true embeddings and measures them at 32 px, the size of the decoder before this one. FOLDER keeps the runs and
the measurements; the same command resumes. --stage validation stops before test, --stage embeddings before anything is
drawn. --states trains the prior that reads hidden states of the text (2 layers of width 128) with each objective of
STATES_METHODS instead of the MLP, and draws all of them; STORE is then embedded with `--tokens 16`, and Frechet
distances of embeddings are in 32 principal dimensions. --ship FOLDER saves the text adapters of `csaligner generate`
and `generate-grid` (assets/micro-priors). --grid draws the image of docs/generation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import machine
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from csaligner.config import TrainConfig, build_config
from csaligner.datasets.images.load import load_image
from csaligner.decoders.decoder import Decoder, default_sampling, open_decoder
from csaligner.encoders import open_encoder
from csaligner.encoders.pixels import fit_square
from csaligner.evaluation.generation import Projection, frechet_distance
from csaligner.files import write_json
from csaligner.generation.evaluate import (
    MeasuringProtocol,
    Reference,
    draw,
    embedding_metrics,
    one_caption_each,
    picture_features,
)
from csaligner.generation.grid import Grid, draw_grid
from csaligner.generation.text import TextToEmbedding, bundled_run
from csaligner.model import AlignedModel
from csaligner.pipeline import train
from csaligner.store.store import Store
from csaligner.types import PairedFeatures, Split

Objective = Mapping[str, Any]
INFONCE, ECLIPSE, OURS, CEILING = "InfoNCE", "ECLIPSE", "CS-Aligner", "ceiling: true embeddings"
L2, TOKENS = "L2", "CS-Aligner, token term"
RECALL, FRECHET = "text_to_image_recall@1", "embedding_frechet"
SHIPPED = {INFONCE: "infonce", ECLIPSE: "eclipse", OURS: "cs-aligner"}
COLUMNS = ("raw", "snapped")
BUNDLED = "bundled CS-Aligner (MLP, more data) raw"
SHORT = {TOKENS: "+ tokens"}
TITLES = {"raw": "{}", "snapped": "{} snap"}  # in the grid
RECALL_LEFT = 0.02
SHARPNESS = 60.0  # of snapping
SIDES = (64, 32)  # the micro decoder's, and that of the decoder before it
BOOTSTRAPS = 500
EMOJI = "openmoji/"  # what the image ids of OpenMoji begin with


def terms(scale: float | None = None, bandwidth: float | str = 0.5, **weights: float) -> Objective:
    """scale: a fixed logit scale; None: learnt from 1/0.07."""
    fixed = {"logit_scale": scale, "learn_logit_scale": False} if scale else {}
    return {"terms": weights} | fixed | ({"bandwidth": bandwidth} if bandwidth != 0.5 else {})


METHODS: dict[str, Sequence[Objective]] = {
    INFONCE: [terms(info_nce=1.0)],
    "InfoNCE, temperature tuned": [terms(s, info_nce=1.0) for s in (10.0, 14.0, 20.0)],
    L2: [terms(paired_l2=1.0)],
    ECLIPSE: [
        *(terms(paired_l2=1.0, info_nce=w) for w in (0.2, 0.5, 1.0)),
        *(terms(14.0, paired_l2=1.0, info_nce=w) for w in (1.0, 0.5, 2.0)),
        terms(paired_l2=1.0, info_nce=0.7),
    ],
    OURS: [
        *(terms(info_nce=1.0, cauchy_schwarz=w) for w in (1.0, 3.0)),
        *(terms(bandwidth="median", info_nce=1.0, cauchy_schwarz=w) for w in (3.0, 10.0)),
        *(terms(14.0, info_nce=1.0, cauchy_schwarz=w) for w in (2.0, 0.5, 1.0)),
    ],
}
STATES_METHODS: dict[str, Sequence[Objective]] = {  # three settings each, where there is something to set
    INFONCE: [terms(s, info_nce=1.0) for s in (None, 14.0, 10.0)],
    L2: [terms(paired_l2=1.0)],
    ECLIPSE: [terms(s, paired_l2=1.0, info_nce=w) for s, w in ((None, 0.2), (None, 1.0), (14.0, 1.0))],
    OURS: [terms(s, info_nce=1.0, cauchy_schwarz=w) for s, w in ((None, 1.0), (None, 3.0), (14.0, 0.5))],
    TOKENS: [
        terms(s, info_nce=1.0, cauchy_schwarz=w, token_cauchy_schwarz=0.3)
        for s, w in ((None, 1.0), (None, 3.0), (14.0, 0.5))
    ],
}
MLP: Objective = {"name": "mlp", "hidden": 128, "dropout": 0.1}
PRIOR: Objective = {"name": "prior", "hidden": 128, "blocks": 2}
DIMS = {False: 64, True: 32}  # of Frechet distances of embeddings; OpenMoji's validation split is small


@dataclass(frozen=True)
class Call:
    """What all runs have in common."""

    store: Path
    features: Path
    work: Path
    epochs: int
    batch_size: int
    steps: int
    whole: bool
    states: bool

    @property
    def methods(self) -> Mapping[str, Sequence[Objective]]:
        return STATES_METHODS if self.states else METHODS

    @property
    def drawn(self) -> Sequence[str]:
        return tuple(STATES_METHODS) if self.states else (INFONCE, ECLIPSE, OURS)

    def seen(self, split: Split) -> SimpleNamespace:
        return embeddings(self.store, split, DIMS[self.states])


@dataclass(frozen=True)
class Run:
    """One objective with seed 0; trial: which of the method's settings."""

    call: Call
    method: str
    trial: int

    @property
    def folder(self) -> Path:
        return self.call.work / f"{self.method.lower().replace(', ', '-').replace(' ', '-')}-{self.trial}"

    @cached_property
    def text(self) -> TextToEmbedding:
        config = build_config(
            TrainConfig,
            {
                "image_adapter": "centre",
                "text_adapter": PRIOR if self.call.states else MLP,
                "start": {"kind": "auto"},
                "gate": False,
                "objective": self.call.methods[self.method][self.trial],
                "epochs": self.call.epochs,
                "batch_size": self.call.batch_size,
                "evaluate_every": self.call.epochs,
                "lr": 1e-3,
                "seed": 0,
            },
        )
        trained = train(Store.open(self.call.store), config, self.folder)
        return TextToEmbedding(AlignedModel(trained.model, [open_encoder("bundled:all-MiniLM-L6-v2")]))

    def on(self, split: Split) -> dict[str, float]:
        """embedding_metrics on a split."""
        return kept(self.folder / f"{split}.json", lambda: metrics_of(self.text, self.call, split))

    def raw(self, column: str) -> Tensor:
        """Predicted raw embeddings for the first captions of the test emoji."""
        model = self.text.model
        pairs = encoded_again(model, self.call.seen("test").pairs)
        rows = torch.tensor([i.startswith(EMOJI) for i in pairs.image_ids])
        directions = model.align("text", pairs.text[rows])
        if column == "snapped":
            real = self.call.seen("test").train
            return snap(directions, model.align("image", real), real)
        return self.text.raw(directions, micro().contract)


def snap(directions: Tensor, real_directions: Tensor, real: Tensor) -> Tensor:
    """(N, d) predicted unit rows, (M, d) unit rows of real images, (M, e) their raw embeddings -> (N, e): row i is
    sum_j w_ij real_j, w_i = softmax(SHARPNESS * cosine of i and all j). In effect this retrieves training images."""
    return torch.softmax(SHARPNESS * directions @ real_directions.T, dim=1) @ real


def metrics_of(text: TextToEmbedding, call: Call, split: Split) -> dict[str, float]:
    """embedding_metrics on a split of the store."""
    seen = call.seen(split)
    seen = SimpleNamespace(**vars(seen) | {"pairs": encoded_again(text.model, seen.pairs)})
    return embedding_metrics(text, cast(Reference, seen))  # which asks for these three things alone


def shipped_on(call: Call, split: Split) -> dict[str, float]:
    """The bundled text adapter, whose training data hold OpenMoji's train split and two sets more."""
    model = AlignedModel.open(bundled_run())
    return metrics_of(TextToEmbedding(model), call, split)


def encoded_again(model: AlignedModel, pairs: PairedFeatures) -> PairedFeatures:
    """The pairs with the texts as a prior that reads hidden states wants them; unchanged for other adapters."""
    if not model.aligner.reads_states:
        return pairs
    return replace(pairs, text=model.features_text(pairs.captions or ()))


@lru_cache
def embeddings(store: Path, split: Split, dims: int) -> SimpleNamespace:
    """pairs: one caption an image; train: the training images' embeddings; protocol."""
    opened = Store.open(store)
    pairs: PairedFeatures = one_caption_each(opened.features(split))
    return SimpleNamespace(
        pairs=pairs, train=opened.features("train").image, protocol=MeasuringProtocol(split, dims=dims)
    )


@lru_cache(maxsize=1)
def micro() -> Decoder:
    return open_decoder("micro")


class Measure:
    """Generated images of the test split against real ones of the same size."""

    def __init__(self, call: Call, side: int, limit: int | None = None) -> None:
        encoder = open_encoder("bundled:efficientnet-lite0")
        self.real = Reference(Store.open(call.features), encoder, side, MeasuringProtocol("test", limit))
        self.side, self.pixels, self.folder = side, pixels_of(self.real.pictures), call.work

    def __call__(self, name: str, images: Sequence[Image.Image]) -> dict[str, float]:
        """name: of the file for the measurements and of that for the projected features that intervals() reads."""
        return kept(self.folder / f"{name}.json", lambda: self._measure(name, images))

    def _measure(self, name: str, images: Sequence[Image.Image]) -> dict[str, float]:
        images = [fit_square(image, self.side) for image in images]
        features, pixels = picture_features(self.real.encoder, images), pixels_of(images)
        assert self.real.project is not None
        both = {"real": self.real.project(self.real.features), "drawn": self.real.project(features)}
        save_file(both, self.folder / f"{name}.safetensors")
        spread = (self.pixels - self.pixels.mean(dim=0)).square().sum()
        r2 = float(1 - (pixels - self.pixels).square().sum() / spread)
        return self.real.measure_features(features) | {"pixel_r2": r2}


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).float()


def drawn(call: Call, name: str, raw: Callable[[], Tensor]) -> list[Image.Image]:
    """One image a row, kept in the folder."""
    path = call.work / f"{name}.npy"
    if not path.exists():
        _say(f"drawing {name}")
        images = draw(micro(), raw(), default_sampling("micro", steps=call.steps))
        np.save(path, np.stack([np.asarray(image) for image in images]))
    return [Image.fromarray(image) for image in np.load(path)]


def kept(path: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What the file says, or what is measured now and written to it."""
    if not path.exists():
        write_json(path, measure())
    found: dict[str, float] = json.loads(path.read_text())
    return found


def choose(trials: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, int]:
    """The trial of each method by the rule at the top."""
    enough = trials[INFONCE][0][RECALL] - RECALL_LEFT

    def rank(trial: Mapping[str, float]) -> tuple[float, float]:
        return max(0.0, enough - trial[RECALL]), trial[FRECHET]

    return {name: min(range(len(tried)), key=lambda i: rank(tried[i])) for name, tried in trials.items()}


def intervals(folder: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """FID of each file of `names` and its difference from CS-Aligner's raw column, with 95 % intervals of a bootstrap
    over test emoji (the same for all), and `saved`: the share of the gain that snapping brings InfoNCE which the raw
    column of the method has already: (FID(InfoNCE) - FID) / (FID(InfoNCE) - FID(InfoNCE, snapped))."""
    samples = {name: load_file(folder / f"{file}.safetensors") for name, file in names.items()}
    n, generator = len(next(iter(samples.values()))["real"]), torch.Generator().manual_seed(0)
    rows = [torch.arange(n)] + [torch.randint(0, n, (n,), generator=generator) for _ in range(BOOTSTRAPS)]
    fid = {
        name: torch.tensor([frechet_distance(s["real"][r], s["drawn"][r]) for r in rows]) for name, s in samples.items()
    }
    worst, best, ours = fid[f"{INFONCE} raw"], fid[f"{INFONCE} snapped"], fid[f"{OURS} raw"]
    found = {}
    for name, values in fid.items():
        asked = {"fid": values, "minus_ours": values - ours, "saved": (worst - values) / (worst - best)}
        found[name] = {key: _interval(value) for key, value in asked.items()}
    return found


def embedding_intervals(call: Call, chosen: Mapping[str, Run]) -> dict[str, Any]:
    """Frechet distance and R@1 of the embeddings predicted for test captions, each with its difference from
    CS-Aligner's, and 95 % intervals of a bootstrap over images (the same for all)."""
    seen = call.seen("test")
    n, generator = len(seen.pairs.image), torch.Generator().manual_seed(0)
    rows = [torch.arange(n)] + [torch.randint(0, n, (n,), generator=generator) for _ in range(BOOTSTRAPS)]
    frechet, recall = {}, {}
    for name, run in chosen.items():
        model = run.text.model
        real = model.align("image", seen.pairs.image)
        predicted = model.align("text", encoded_again(model, seen.pairs).text)
        project = Projection.fit(model.align("image", seen.train), DIMS[call.states])
        a, b, hit = project(real), project(predicted), (predicted @ real.T).argmax(dim=1) == torch.arange(n)
        frechet[name] = torch.tensor([frechet_distance(a[r], b[r]) for r in rows])
        recall[name] = torch.stack([hit[r].float().mean() for r in rows])
    return {
        name: {
            "frechet": _interval(frechet[name]),
            "frechet_minus_ours": _interval(frechet[name] - frechet[OURS]),
            "recall@1": _interval(recall[name]),
            "recall@1_minus_ours": _interval(recall[name] - recall[OURS]),
        }
        for name in chosen
    }


def _interval(values: Tensor) -> dict[str, float]:
    low, high = values[1:].quantile(torch.tensor([0.025, 0.975])).tolist()
    return {"value": float(values[0]), "low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ship", type=Path)
    parser.add_argument("--stage", choices=("validation", "embeddings", "all"), default="all")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--states", action="store_true")
    parser.add_argument("--steps", type=int, default=12, help="of denoising")
    args = parser.parse_args()
    call = Call(args.store, args.features, args.work, args.epochs, args.batch_size, args.steps, args.whole, args.states)
    runs = {name: [Run(call, name, i) for i in range(len(settings))] for name, settings in call.methods.items()}
    trials: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for name, tried in runs.items():
        for run in tried:
            trials[name].append(run.on("val"))
            _say(f"{name} {call.methods[name][run.trial]}: {trials[name][-1]}")
    chosen = {name: runs[name][trial] for name, trial in choose(trials).items()}
    if args.ship:
        for name, folder in SHIPPED.items():
            replace(chosen[name]).text.model.aligner.half().save(args.ship / folder)
    if args.stage != "validation":
        content = measured(call, chosen, trials)
        machine.write(args.out, content | (measured_images(call, chosen) if args.stage == "all" else {}))
    if args.grid:
        save_sheet(call, chosen, args.grid)


def measured(
    call: Call, chosen: Mapping[str, Run], trials: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[str, Any]:
    """The embeddings predicted for all test captions."""
    methods: dict[str, dict[str, Any]] = {
        name: {
            "objective": call.methods[name][run.trial],
            "test": run.on("test"),
            "trials": [{"objective": o, **t} for o, t in zip(call.methods[name], trials[name], strict=True)],
        }
        for name, run in chosen.items()
    }
    store = Store.open(call.store)
    return {
        "machine": machine.describe(),
        "dataset": store.dataset,
        "n_captions": len(call.seen("test").pairs.image),
        "settings": {"epochs": call.epochs, "batch_size": call.batch_size, "seeds": 1},
        "shipped": {split: shipped_on(call, split) for split in ("val", "test")} if call.states else {},
        "frechet_dims": DIMS[call.states],
        "intervals_of_embeddings": embedding_intervals(call, chosen) if call.states else {},
        "methods": methods,
    }


def measured_images(call: Call, chosen: Mapping[str, Run]) -> dict[str, Any]:
    """The images generated for the test emoji."""
    pairs = call.seen("test").pairs
    n = sum(name.startswith(EMOJI) for name in pairs.image_ids)
    measure = Measure(call, SIDES[0], n)
    assert measure.real.pairs.image_ids == pairs.image_ids[:n]  # OpenMoji is the first data set
    columns = {CEILING: measure("ceiling", drawn(call, "ceiling", lambda: pairs.image[:n]))}
    files = {CEILING: "ceiling"}
    for method in call.drawn:
        for column in COLUMNS:
            name = f"{chosen[method].folder.name}-{column}"
            images = drawn(call, name, lambda run=chosen[method], column=column: run.raw(column))  # type: ignore[misc]
            columns[f"{method} {column}"] = measure(name, images)
            files[f"{method} {column}"] = name
    if call.states:
        columns[BUNDLED] = measure("bundled-raw", drawn(call, "bundled-raw", lambda: _bundled_raw(pairs, n)))
        files[BUNDLED] = "bundled-raw"
    whole = {}
    if call.whole:
        images = drawn(call, "whole", lambda: pairs.image)
        whole = {str(side): Measure(call, side)(f"whole-{side}", images) for side in SIDES}
    sampling = default_sampling("micro", steps=call.steps)
    return {
        "n_emoji": n,
        "features": "bundled:efficientnet-lite0, images scaled up from 64 (32) px; Frechet in 64 principal dimensions",
        "sampling": {"steps": sampling.steps, "guidance": sampling.guidance},
        "decoder": "micro",
        "whole": whole,
        "emoji": columns,
        "intervals": intervals(call.work, files),
    }


def _bundled_raw(pairs: PairedFeatures, n: int) -> Tensor:
    """Raw embeddings that the bundled text adapter predicts for the first n captions."""
    text = TextToEmbedding.open(bundled_run())
    return text.raw(text.model.align("text", pairs.text[:n]), micro().contract)


def save_sheet(call: Call, chosen: Mapping[str, Run], path: Path, count: int = 24) -> None:
    """Test emoji at evenly spaced positions: the original, and what was drawn from each embedding."""
    pairs, sources = call.seen("test").pairs, Store.open(call.store).image_sources
    n = sum(name.startswith(EMOJI) for name in pairs.image_ids)
    rows = [i * n // count for i in range(count)]
    files = {"true embedding": "ceiling"}
    for method in call.drawn:
        title = SHORT.get(method, method)
        files |= {TITLES[c].format(title): f"{chosen[method].folder.name}-{c}" for c in COLUMNS}
    columns: dict[str, Sequence[Image.Image]] = {
        "original": [load_image(sources[pairs.image_ids[i]], 224) for i in rows]
    }
    for title, file in files.items():
        images = np.load(call.work / f"{file}.npy")
        columns[title] = [Image.fromarray(images[i]) for i in rows]
    captions = pairs.captions or ()
    draw_grid(Grid([captions[i] for i in rows], columns)).quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
