"""`csaligner train-decoder`: stores in, a decoder folder out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csaligner.data.store import Store
from csaligner.decoders.micro_training import DecoderTrainer, DecoderTraining, Report

from .pictures import Progress, gather_pictures


def train_decoder(
    stores: Sequence[Store], config: DecoderTraining, out: Path, *, pictures: Progress, report: Report
) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    found = gather_pictures(stores, config.model.size, out / "pictures.safetensors", pictures)
    trainer = DecoderTrainer(found, config, out, report)
    trainer.fit()
    return out / "decoder"
