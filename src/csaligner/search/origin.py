"""Where the aligner of an index comes from: a run, a saved aligner, or the one in the package."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.encoders import open_encoder
from csaligner.pipeline import IMAGE_ENCODER, RECORD, TEXT_ENCODER, encoders_of, model_folder
from csaligner.types import Encoder, EncoderInfo, Modality

from .index import fingerprint_of

BUNDLED = "bundled"
ASSET = Path(__file__).parent.parent / "assets" / "bundled-aligner"


@dataclass(frozen=True)
class Origin:
    """name: for people; folder: config.json and model.safetensors; image, text: the encoders of its features."""

    name: str
    folder: Path
    model: Aligner
    image: EncoderInfo
    text: EncoderInfo

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.folder)

    def copy_to(self, folder: Path) -> None:
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(self.folder / name, folder / name)


def open_origin(run: str, encoders: Sequence[Encoder] = ()) -> Origin:
    """run: a run folder, a folder that Aligner.save wrote, or "bundled".

    The encoders are those given, else those of the run's store, else the bundled ones; they must be the ones that
    the aligner was trained with. Raises InputError.
    """
    folder = _folder(run)
    model = Aligner.load(folder)
    named = dict(encoders_of(Path(run))) if run != BUNDLED and (Path(run) / RECORD).is_file() else {}
    named |= {encoder.info.modality: encoder.info for encoder in encoders}
    image = _encoder_info(run, "image", named, model.config.image_encoder)
    text = _encoder_info(run, "text", named, model.config.text_encoder)
    for info, wanted in ((image, model.config.dim_image), (text, model.config.dim_text)):
        if info.dim != wanted:
            raise InputError(f"run: {run} maps {wanted}-d {info.modality}s, {info.id} gives {info.dim} dimensions")
    return Origin(run if run == BUNDLED else str(Path(run).resolve()), folder, model, image, text)


def run_fingerprint(run: str) -> str:
    """Of the aligner that `run` names, without opening it."""
    return fingerprint_of(_folder(run))


def _folder(name: str) -> Path:
    if name == BUNDLED:
        return ASSET
    run = Path(name)
    if not (run / RECORD).is_file():
        if (run / "model.safetensors").is_file():
            return run
        raise InputError(f"run: {run} is no run folder and no saved aligner; give one, or 'bundled'")
    return model_folder(run)


def _encoder_info(run: str, side: Modality, named: Mapping[Modality, EncoderInfo], wanted: str | None) -> EncoderInfo:
    """The one that is named, else the bundled one."""
    info = named.get(side) or open_encoder(IMAGE_ENCODER if side == "image" else TEXT_ENCODER, side).info
    if wanted is not None and info.fingerprint != wanted:
        raise InputError(
            f"encoder: {run} was trained on {side}s of the encoder {wanted}, {info.id} is {info.fingerprint}; "
            f"name the right one"
        )
    return info
