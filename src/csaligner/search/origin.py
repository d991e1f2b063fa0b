"""Where the aligner of an index comes from: a run, a saved aligner, or the one in the package."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.data.manifest import read_manifest
from csaligner.encoders import open_encoder
from csaligner.runs import IMAGE_ENCODER, RECORD, TEXT_ENCODER, model_folder, read_record
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
    image = _encoder_info(run, "image", encoders, model.config.image_encoder)
    text = _encoder_info(run, "text", encoders, model.config.text_encoder)
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


def _encoder_info(run: str, side: Modality, given: Sequence[Encoder], wanted: str | None) -> EncoderInfo:
    info = next((encoder.info for encoder in given if encoder.info.modality == side), None) or _named(run, side)
    if wanted is not None and info.fingerprint != wanted:
        raise InputError(
            f"encoder: {run} was trained on {side}s of the encoder {wanted}, {info.id} is {info.fingerprint}; "
            f"name the right one"
        )
    return info


def _named(run: str, side: Modality) -> EncoderInfo:
    """The encoder of the run's store where that is still there, else the bundled one."""
    if run != BUNDLED and (Path(run) / RECORD).is_file():
        store = Path(read_record(Path(run))["store"])
        if store.is_dir():
            manifest = read_manifest(store)
            info = manifest.image if side == "image" else manifest.text
            if info is not None:
                return info
    return open_encoder(IMAGE_ENCODER if side == "image" else TEXT_ENCODER, side).info
