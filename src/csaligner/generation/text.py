"""Prompts to raw image embeddings, the input of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from csaligner.adapters.standardise import StandardiseAdapter
from csaligner.checks import InputError
from csaligner.config import FIXED
from csaligner.decoders.contract import Contract
from csaligner.model import AlignedModel

from .prompts import Prompt, check_length, mix

BUNDLED_RUNS = ("infonce", "eclipse", "cs-aligner")


def bundled_run(name: str = "cs-aligner") -> Path:
    """Return the folder of a bundled aligner for the micro decoder."""
    return Path(str(resources.files("csaligner"))) / "assets" / "micro-priors" / name


class TextToEmbedding:
    """Maps prompts to raw image embeddings, one forward pass per prompt. model: with a fixed image adapter."""

    def __init__(self, model: AlignedModel) -> None:
        fixed = model.aligner.config.image_adapter.name
        if fixed not in FIXED:
            raise InputError(
                f"run: its image adapter is {fixed!r}, which does not keep the embeddings of the image encoder; "
                "train with image_adapter=standardise or image_adapter=centre"
            )
        self.model = model

    @classmethod
    def open(cls, run: Path) -> TextToEmbedding:
        """Open a run folder or a saved aligner. Raises InputError for any other folder."""
        return cls(AlignedModel.open(run))

    @property
    def dim(self) -> int:
        return self.model.dim

    def check(self, contract: Contract) -> None:
        """Raise InputError if the decoder takes other embeddings."""
        config = self.model.aligner.config
        contract.check_source(self.dim, config.image_encoder)
        if config.image_adapter.name == "identity" and contract.norm is None:
            raise InputError(
                f"run: its embeddings have unit length, and {contract.decoder} has no norm of raw embeddings; "
                "train with image_adapter=standardise"
            )

    def directions(self, prompts: Sequence[Prompt]) -> Tensor:
        """Encode prompts to (N, dim) unit rows of the aligned space. Raises InputError for an over-long prompt."""
        texts = list(dict.fromkeys(text for prompt in prompts for text in prompt.texts))
        for text in texts:
            check_length(text, self.model.encoder("text"))
        found = dict(zip(texts, self.model.align("text", self.model.features_text(texts)), strict=True))
        return torch.stack([mix(torch.stack([found[t] for t in p.texts]), p.weights) for p in prompts])

    def raw(self, directions: Tensor, contract: Contract) -> Tensor:
        """Map unit rows to embeddings with the mean, scale and norm of real ones; norm only for an identity adapter."""
        adapter = self.model.aligner.image_adapter
        if isinstance(adapter, StandardiseAdapter):
            return adapter.raw(directions)
        assert contract.norm is not None
        return directions * contract.norm
