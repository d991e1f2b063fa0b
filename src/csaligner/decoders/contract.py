"""Input contract of a decoder: encoder, dimensions and moments of its embeddings."""

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
UNIT = 1e-3  # tolerance of the check for normalised rows


@dataclass(frozen=True)
class Contract:
    """Input requirements of a decoder. All decoders take raw embeddings, without L2 normalisation.

    decoder: name in messages; dim: dimensions of the image embeddings; encoder_id, encoder: name and fingerprint of the
    image encoder, if known. mean, std: (dim,) moments of raw real embeddings; norm: their median length; negative:
    (dim,), unconditional embedding of guidance; None if the folder does not contain them. takes_negative: whether
    another negative embedding can be given.
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
        """Raise InputError if embeddings of `dim` dimensions from that encoder (fingerprint) do not fit the decoder."""
        source = f" of {self.encoder_id}" if self.encoder_id else ""
        if dim != self.dim:
            raise InputError(
                f"decoder: {self.decoder} takes {self.dim}-dimensional image embeddings{source}, got {dim} from "
                "the adapter; train the adapter on image embeddings of the decoder's encoder"
            )
        if self.encoder is not None and encoder is not None and encoder != self.encoder:
            raise InputError(
                f"decoder: {self.decoder} was trained on image embeddings{source} ({self.encoder}), the adapter on "
                f"another encoder ({encoder}); train the adapter on image embeddings of the decoder's encoder"
            )

    def check(self, embeddings: Tensor) -> None:
        """Raise InputError for wrong dimensions, non-finite values and normalised rows."""
        self.check_source(embeddings.shape[-1], None)
        norms = embeddings.double().norm(dim=1)
        if not bool(norms.isfinite().all()):
            raise InputError("embeddings: contain NaN or infinity; check the model that computed them")
        if bool((norms - 1).abs().max() < UNIT):
            length = f"about {self.norm:.3g}" if self.norm else "that of the image encoder"
            raise InputError(
                f"embeddings: got normalised rows (length 1), {self.decoder} wants raw ones (length {length}); rescale "
                "them to the length of real embeddings, or train with image_adapter=standardise"
            )


def write_contract(contract: Contract, folder: Path) -> None:
    """Write csaligner.json and embedding.safetensors into a pipeline folder."""
    note = {"dim": contract.dim, "encoder_id": contract.encoder_id, "encoder": contract.encoder, "norm": contract.norm}
    write_json(folder / NOTE, {"format_version": 1, "normalised": False} | note)
    known = {"mean": contract.mean, "std": contract.std, "negative": contract.negative}
    write_safetensors({name: value.clone() for name, value in known.items() if value is not None}, folder / MOMENTS)


def read_note(folder: Path) -> dict[str, Any]:
    """Read the files of write_contract as fields of a Contract; empty if there are none."""
    if not (folder / NOTE).is_file():
        return {}
    try:
        note = cast(dict[str, Any], parse_json((folder / NOTE).read_text(encoding="utf-8")))
        moments = load_file(folder / MOMENTS)
        fields = {name: note[name] for name in ("dim", "encoder_id", "encoder", "norm")}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"decoder: {folder / NOTE} or {MOMENTS} cannot be read ({error!r}); save it again") from None
    return fields | {name: moments[name].float() for name in ("mean", "std", "negative") if name in moments}
