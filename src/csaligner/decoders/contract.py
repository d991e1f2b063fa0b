"""What a decoder wants to be given: checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from csaligner.checks import InputError
from csaligner.files import write_json
from csaligner.integrity import write_safetensors
from csaligner.parsing import parse_json

NOTE, MOMENTS = "csaligner.json", "embedding.safetensors"
UNIT = 1e-3  # rows whose lengths are all this close to 1 are normalised


@dataclass(frozen=True)
class Contract:
    """decoder: its name in messages; dim: of the image embeddings; encoder_id, encoder: name and fingerprint of the
    image encoder they come from, where known.

    mean, std: (dim,) of raw real embeddings; norm: their median length; negative: (dim,), what stands for no
    picture in guidance; None where the folder does not say. takes_negative: whether another one can be given.
    All decoders here want raw embeddings: as the encoder gives them, not scaled to length 1.
    """

    decoder: str
    dim: int
    encoder_id: str | None = None
    encoder: str | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    norm: float | None = None
    negative: Tensor | None = None
    takes_negative: bool = True

    def check_source(self, dim: int, encoder: str | None) -> None:
        """Raises InputError unless embeddings of `dim` dimensions by the encoder of that fingerprint are wanted."""
        whose = f" of {self.encoder_id}" if self.encoder_id else ""
        if dim != self.dim:
            raise InputError(
                f"decoder: {self.decoder} takes {self.dim}-dimensional image embeddings{whose}, the adapter gives "
                f"{dim}; train the adapter on the image embeddings of this decoder's encoder"
            )
        if self.encoder is not None and encoder is not None and encoder != self.encoder:
            raise InputError(
                f"decoder: {self.decoder} was trained on image embeddings{whose} ({self.encoder}), the adapter on "
                f"those of another encoder ({encoder})"
            )

    def check(self, embeddings: Tensor) -> None:
        """Raises InputError for another dimension, for NaN, and for normalised rows where raw ones are wanted."""
        self.check_source(embeddings.shape[-1], None)
        norms = embeddings.double().norm(dim=1)
        if not bool(norms.isfinite().all()):
            raise InputError("embeddings: hold NaN or infinity; repair what made them")
        if bool((norms - 1).abs().max() < UNIT):
            like = f"about {self.norm:.3g}" if self.norm else "what the image encoder gives"
            raise InputError(
                f"embeddings: are normalised (length 1), {self.decoder} wants raw ones (length {like}); give them the "
                "length of real embeddings back, as an aligner with image_adapter=standardise does"
            )


def write_contract(contract: Contract, folder: Path) -> None:
    """csaligner.json and embedding.safetensors beside the parts of a pipeline."""
    note = {"dim": contract.dim, "encoder_id": contract.encoder_id, "encoder": contract.encoder, "norm": contract.norm}
    write_json(folder / NOTE, {"format_version": 1, "normalised": False} | note)
    known = {"mean": contract.mean, "std": contract.std, "negative": contract.negative}
    write_safetensors({name: value.clone() for name, value in known.items() if value is not None}, folder / MOMENTS)


def read_note(folder: Path) -> dict[str, Any]:
    """What write_contract wrote, as fields of a Contract; empty where a folder has none."""
    if not (folder / NOTE).is_file():
        return {}
    try:
        note = cast(dict[str, Any], parse_json((folder / NOTE).read_text(encoding="utf-8")))
        moments = load_file(folder / MOMENTS)
        fields = {name: note[name] for name in ("dim", "encoder_id", "encoder", "norm")}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"decoder: {folder / NOTE} or {MOMENTS} cannot be read ({error!r}); save it again") from None
    return fields | {name: moments[name].float() for name in ("mean", "std", "negative") if name in moments}
