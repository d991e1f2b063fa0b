"""Aligner: an image adapter, a text adapter and their logit scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.config import FIXED, FORMAT_VERSION, AdapterConfig, Strict, TrainConfig
from csaligner.registry import ADAPTERS, load
from csaligner.types import TEXT_STATES, Inputs, Modality, PairedFeatures, TokenPairs, TokenSets, TokenSource

from .folder import check_size, read_config, read_weights, write_model
from .hub import HubMixin
from .mlp import MLPAdapter
from .prior import PriorAdapter, settings_of_checkpoint
from .span import fit_family
from .standardise import CentreAdapter, StandardiseAdapter
from .start import Affine, Unpaired, blank, fit_starts

CHUNK = 8192
STATES_AT_ONCE = 256  # texts with hidden states per forward pass
BUNDLED = Path(__file__).parents[1] / "assets" / "bundled-aligner"
FITTED = {"standardise": StandardiseAdapter, "centre": CentreAdapter}  # fixed sides with moments


class AlignerConfig(Strict):
    """Architecture of an Aligner, stored in config.json next to its weights."""

    format_version: int = FORMAT_VERSION
    dim_image: Annotated[int, Field(ge=1)]
    dim_text: Annotated[int, Field(ge=1)]
    dim: Annotated[int, Field(ge=1)]
    image_adapter: AdapterConfig
    text_adapter: AdapterConfig
    image_encoder: str | None = None
    text_encoder: str | None = None
    names: tuple[str, str] | None = None


class Aligner(nn.Module, HubMixin):
    """Image adapter and text adapter into one space of unit vectors.

    encode_image: (N, dim_image) -> (N, dim), encode_text: (M, dim_text) -> (M, dim), rows of length 1.
    logit_scale: 1/temperature of InfoNCE, a scalar. image_encoder and text_encoder in the config are the
    fingerprints of the encoders whose features it was trained on; names: of the two spaces, None: image and text.
    """

    def __init__(self, config: AlignerConfig, starts: tuple[Affine, Affine], logit_scale: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.image_adapter: nn.Module = load("adapter", ADAPTERS, config.image_adapter.name)(
            starts[0], config.image_adapter
        )
        self.text_adapter: nn.Module = load("adapter", ADAPTERS, config.text_adapter.name)(
            starts[1], config.text_adapter
        )
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))

    @classmethod
    def fit_start(
        cls,
        features: PairedFeatures,
        config: TrainConfig,
        encoders: tuple[str | None, str | None] = (None, None),
        starts: tuple[Affine, Affine] | None = None,
        unpaired: Unpaired = (None, None),
    ) -> Aligner:
        """Return an untrained model, initialised with `starts`; None: with the closed-form start `config.start`,
        fitted to the pairs and the features of unpaired images and texts.

        start.kind=chosen without starts is the prior of the family (adapters/untrained.py). With start.kind=random, all
        weights of mlp and linear adapters are random and learned. start.kind=class_names is the bundled aligner, with
        its adapters; raises InputError if the features are not those of its encoders. A prior reads features.states if
        there are any; start.checkpoint replaces its weights.
        """
        if config.start.kind == "class_names":
            return cls._bundled(features, encoders)
        standardise = {
            side: FITTED[adapter.name](Affine.identity(x.shape[1]), adapter).fit(x)
            for side, x, adapter in (
                ("image", features.image, config.image_adapter),
                ("text", features.text, config.text_adapter),
            )
            if adapter.name in FITTED
        }
        seen = replace(features, **{side: fitted(getattr(features, side)) for side, fitted in standardise.items()})
        image, text = unpaired
        image = standardise["image"](image) if image is not None and "image" in standardise else image
        text = standardise["text"](text) if text is not None and "text" in standardise else text
        fixed = fixed_modality(config)
        if starts is None and config.chooses_start:
            family = fit_family(seen, (image, text), config.dim, fixed)
            starts = family.candidates[family.prior]
        starts = starts or fit_starts(seen, config.start, config.dim, fixed, (image, text))
        scale = config.objective.logit_scale
        model = cls(
            AlignerConfig(
                dim_image=features.image.shape[1],
                dim_text=features.text.shape[1],
                dim=len(starts[0].offset),
                image_adapter=_landing(config.image_adapter, starts[0]),
                text_adapter=_landing(_of_states(features, config), starts[1]),
                image_encoder=encoders[0],
                text_encoder=encoders[1],
                names=config.names,
            ),
            starts,
            scale if isinstance(scale, float) else scale.start,
        )
        for side, fitted in standardise.items():
            getattr(model, f"{side}_adapter").load_state_dict(fitted.state_dict())
        for adapter in (model.image_adapter, model.text_adapter):
            if config.start.kind == "random" and isinstance(adapter, MLPAdapter | PriorAdapter):
                adapter.randomise()
        if config.start.checkpoint is not None:
            images = standardise.get("image")
            moments = (images.mean, images.std) if images is not None else ()
            cast(PriorAdapter, model.text_adapter).load_published(Path(config.start.checkpoint), *moments)
        return model

    @classmethod
    def _bundled(cls, features: PairedFeatures, encoders: tuple[str | None, str | None]) -> Aligner:
        model = cls.load(BUNDLED)
        own = model.config
        known = encoders in ((None, None), (own.image_encoder, own.text_encoder))
        dims = (features.image.shape[1], features.text.shape[1])
        if not known or dims != (own.dim_image, own.dim_text) or float(features.image.min()) < 0:
            raise InputError(
                "start.kind: class_names needs features of bundled:efficientnet-lite0 and bundled:all-MiniLM-L6-v2, "
                f"got others ({dims[0]} and {dims[1]} dimensions); use start.kind=chosen"
            )
        return model.train()

    @property
    def logit_scale(self) -> Tensor:
        return self.log_logit_scale.exp()

    def encode_image(self, image: Tensor) -> Tensor:
        return normalize(self.image_adapter(image), dim=1)

    def encode_text(self, text: Inputs) -> Tensor:
        """text: features (M, dim_text); of an aligner that reads states, a mapping of types.TEXT_STATES."""
        return normalize(self.adapt_text(text), dim=1)

    def adapt_text(self, text: Inputs) -> Tensor:
        """Return the output of the text adapter, (M, dim), before normalisation."""
        parts = (text,) if isinstance(text, Tensor) else tuple(text[name] for name in TEXT_STATES)
        found: Tensor = self.text_adapter(*parts)
        return found

    @property
    def reads_states(self) -> bool:
        """Whether the text adapter reads the hidden states of the text encoder (a prior trained with them)."""
        return self.config.text_adapter.states is not None

    def forward(self, image: Tensor, text: Inputs) -> tuple[Tensor, Tensor]:
        return self.encode_image(image), self.encode_text(text)

    def with_tokens(self, image: Tensor, text: Inputs, tokens: TokenPairs) -> tuple[Tensor, Tensor, TokenPairs]:
        """Return forward(image, text) and the tokens of the pairs in the aligned space, unit vectors.

        tokens: (P, T, dim_image) and (P, L, dim_text), of the P texts that come first; each token passes through the
        adapter of its modality. The tokens of a prior that reads states are its outputs at the states instead."""
        if not self.reads_states:
            sides = (adapt_sets(self.encode_image, tokens.image), adapt_sets(self.encode_text, tokens.text))
            return self.encode_image(image), self.encode_text(text), TokenPairs(*sides)
        pooled, states, mask = (text[name] for name in TEXT_STATES)  # type: ignore[index]
        found, sets = cast(PriorAdapter, self.text_adapter).with_tokens(pooled, states, mask)
        pairs = len(tokens.image.mask)
        own = TokenSets(normalize(sets.states[:pairs], dim=2), sets.mask[:pairs])
        return (
            self.encode_image(image),
            normalize(found, dim=1),
            TokenPairs(adapt_sets(self.encode_image, tokens.image), own),
        )

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into `folder`, atomically."""
        write_model(folder, self.config, self)

    @classmethod
    def load(cls, folder: Path) -> Aligner:
        """Read a folder written by `save`. Raises InputError if it is missing, damaged or not an Aligner."""
        config = read_config(AlignerConfig, folder)
        sides = ((config.image_adapter, config.dim_image), (config.text_adapter, config.dim_text))
        check_size(folder, sides, config.dim)
        model = cls(config, (blank(config.dim_image, config.dim), blank(config.dim_text, config.dim)))
        read_weights(folder, model)
        return model.eval()


def fixed_modality(config: TrainConfig) -> Modality | None:
    """The modality whose adapter learns nothing, if there is one."""
    sides: tuple[tuple[Modality, str], ...] = (("image", config.image_adapter.name), ("text", config.text_adapter.name))
    return next((side for side, name in sides if name in FIXED), None)


def align(model: Aligner, features: PairedFeatures) -> PairedFeatures:
    """Return the same pairs, encoded into the aligned space. Raises InputError if the model reads states and there are
    none."""
    text = features.text.float()
    return PairedFeatures(
        encode(model, "image", features.image.float()),
        encode_states(model, text, features.states) if model.reads_states else encode(model, "text", text),
        features.text_to_image,
        features.image_ids,
        features.captions,
    )


@torch.inference_mode()
def encode(model: Aligner, side: str, x: Tensor) -> Tensor:
    """Encode x with the `side` adapter ("image" or "text"), in chunks on the model's device; returns a CPU tensor."""
    apply: Callable[[Tensor], Tensor] = model.encode_image if side == "image" else model.encode_text
    device = model.log_logit_scale.device
    return torch.cat([apply(chunk.to(device)).cpu() for chunk in torch.split(x, CHUNK)])


@torch.inference_mode()
def encode_states(model: Aligner, text: Tensor, states: TokenSource | None) -> Tensor:
    """Encode texts (M, d) with the hidden states of the text encoder, in chunks; returns a CPU tensor."""
    if states is None:
        raise InputError("text: this prior reads hidden states, but these pairs have none; embed with --tokens")
    device = model.log_logit_scale.device
    found = []
    for rows in torch.split(torch.arange(len(text)), STATES_AT_ONCE):
        inputs = with_states(text[rows], states[rows])
        found.append(model.encode_text({name: t.to(device) for name, t in inputs.items()}).cpu())
    return torch.cat(found) if found else torch.empty(0, model.config.dim)


def with_states(text: Tensor, states: TokenSets) -> dict[str, Tensor]:
    """Return the text input of an aligner that reads states (types.TEXT_STATES)."""
    return dict(zip(TEXT_STATES, (text, states.states, states.mask), strict=True))


def adapt_sets(encode: Callable[[Tensor], Tensor], sets: TokenSets) -> TokenSets:
    """Apply an adapter to every token; masked tokens become zeros."""
    found = encode(sets.states[sets.mask])
    return TokenSets(found.new_zeros(*sets.mask.shape, found.shape[1]).index_put((sets.mask,), found), sets.mask)


def _of_states(features: PairedFeatures, config: TrainConfig) -> AdapterConfig:
    """Return the text adapter's config with the shape of a published prior, and of the hidden states of the data."""
    adapter = config.text_adapter
    if config.start.checkpoint is not None:
        adapter = settings_of_checkpoint(Path(config.start.checkpoint), adapter)
    elif adapter.name == "prior" and features.states is not None:
        adapter = adapter.model_copy(update={"states": features.states.dim})
    if adapter.states is not None and (features.states is None or features.states.dim != adapter.states):
        got = "none" if features.states is None else f"some of {features.states.dim} dimensions"
        raise InputError(
            f"text: the prior reads hidden states of {adapter.states} dimensions, the data have {got}; embed with "
            "--tokens and the text encoder of the prior"
        )
    return adapter


def _landing(adapter: AdapterConfig, start: Affine) -> AdapterConfig:
    return adapter.model_copy(update={"onto": start.spread is not None})
