"""From words to the raw image embeddings that a decoder takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner, encode
from csaligner.adapters.standardise import StandardiseAdapter
from csaligner.checks import InputError
from csaligner.decoders.contract import Contract
from csaligner.encoders import open_encoder
from csaligner.pipeline import IMAGE_ENCODER, RECORD, TEXT_ENCODER, encoders_of, model_folder
from csaligner.types import Encoder, Modality

from .prompts import Prompt, check_length, mix

BUNDLED: Mapping[Modality, str] = {"image": IMAGE_ENCODER, "text": TEXT_ENCODER}
BUNDLED_RUNS = ("infonce", "eclipse", "cs-aligner")


def bundled_run(name: str = "cs-aligner") -> Path:
    """An aligner that comes with the package, for the micro decoder."""
    return Path(str(resources.files("csaligner"))) / "assets" / "micro-priors" / name


class TextToEmbedding:
    """Prompts -> raw image embeddings, one forward pass a prompt. model: image side fixed, text side trained."""

    def __init__(self, model: Aligner, text_encoder: Encoder, image_encoder_id: str = IMAGE_ENCODER) -> None:
        fixed = model.config.image_adapter.name
        if fixed not in ("standardise", "identity"):
            raise InputError(
                f"run: its image side has the adapter {fixed!r}, so it makes no embeddings of the image encoder; "
                "train with image_adapter=standardise"
            )
        wanted, found = model.config.text_encoder, text_encoder.info
        if wanted is not None and wanted != found.fingerprint:
            raise InputError(
                f"run: was trained on texts of another encoder ({wanted}) than {found.id} ({found.fingerprint})"
            )
        self.model, self.text_encoder, self.image_encoder_id = model.eval(), text_encoder, image_encoder_id

    @classmethod
    def open(cls, run: Path) -> TextToEmbedding:
        """run: a folder that `csaligner train` wrote, or an aligner's own. Raises InputError for another folder."""
        if (run / RECORD).is_file():
            infos = encoders_of(run)
            image, text = (infos[side].id if side in infos else name for side, name in BUNDLED.items())
            return cls(Aligner.load(model_folder(run)), open_encoder(text, "text"), image)
        if not run.is_dir():
            raise InputError(f"run: no such folder: {run}")
        return cls(Aligner.load(run), open_encoder(TEXT_ENCODER, "text"))

    @property
    def dim(self) -> int:
        return self.model.config.dim

    def check(self, contract: Contract) -> None:
        """Raises InputError where the decoder wants other embeddings than this makes."""
        contract.check_source(self.dim, self.model.config.image_encoder)
        if self.model.config.image_adapter.name == "identity" and contract.norm is None:
            raise InputError(
                f"run: knows directions only and {contract.decoder} does not say how long raw embeddings are; "
                "train with image_adapter=standardise"
            )

    def directions(self, prompts: Sequence[Prompt]) -> Tensor:
        """(N, dim) unit rows in the aligned space. Raises InputError for an over-long prompt."""
        texts = list(dict.fromkeys(text for prompt in prompts for text in prompt.texts))
        for text in texts:
            check_length(text, self.text_encoder)
        prepared = [self.text_encoder.prepare(text) for text in texts]
        found = dict(zip(texts, encode(self.model, "text", self.text_encoder.encode(prepared).clone()), strict=True))
        return torch.stack([mix(torch.stack([found[t] for t in p.texts]), p.weights) for p in prompts])

    def raw(self, directions: Tensor, contract: Contract) -> Tensor:
        """Unit rows -> embeddings with the mean, scale and length of real ones; length alone for an identity side."""
        adapter = self.model.image_adapter
        if isinstance(adapter, StandardiseAdapter):
            return adapter.raw(directions)
        assert contract.norm is not None
        return directions * contract.norm
