"""Decoder training from stores (`csaligner train-decoder`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from csaligner.decoders.contract import Contract
from csaligner.decoders.decoder import read_contract
from csaligner.decoders.folder import decoder_folder
from csaligner.decoders.micro import save_micro
from csaligner.decoders.micro_training import DecoderTrainer, DecoderTraining, Report
from csaligner.files import recover
from csaligner.store.store import Store

from .pictures import Progress, gather_pictures, image_encoder

DECODER = "decoder"


def train_decoder(
    stores: Sequence[Store], config: DecoderTraining, out: Path, *, pictures: Progress, report: Report
) -> Path:
    """Train the micro decoder on the train splits of the stores; returns the decoder folder.

    Resumes after an interruption. If `steps` are already completed, the decoder is only saved. Raises InputError for
    stores without image files or of different image encoders, for a `start` of another image encoder or size, and if
    `out` was trained with other settings.
    """
    encoder = image_encoder(stores[0])
    if config.start is not None:
        read_contract(config.start).check_source(encoder.dim, encoder.fingerprint)
    out.mkdir(parents=True, exist_ok=True)
    recover(out)
    found = gather_pictures(stores, config.model.size, out / "pictures.safetensors", pictures)
    trainer = DecoderTrainer(found, config, out, report)
    trainer.fit()
    moments = trainer.moments
    contract = Contract(
        "micro",
        config.model.embedding_dim,
        encoder_id=encoder.id,
        encoder=encoder.fingerprint,
        mean=moments.mean,
        std=moments.std,
        norm=moments.norm,
        negative=moments.mean,
    )
    save_micro(trainer.finished(), contract, out / DECODER, model_card(stores, config, trainer.step))
    return out / DECODER


def model_card(stores: Sequence[Store], config: DecoderTraining, steps: int) -> str:
    """Return README.md: description, data, training and licence."""
    distinct = {store.sha256: store for store in stores}.values()
    data = "\n".join(
        f"- {s.dataset}: {s.counts['train'][0]} images of the train split, with weight "
        f"{[t.sha256 for t in stores].count(s.sha256)}, original and mirrored. {s.attribution}"
        for s in distinct
    )
    model = config.model
    return f"""# A small unCLIP decoder

Generates images of {model.size} x {model.size} pixels from image embeddings. Same classes as Kandinsky 2.2's decoder
(`KandinskyV22Pipeline` of diffusers), trained by `csaligner train-decoder`. Intended for experiments and tests.

- Input: raw (not normalised) {model.embedding_dim}-dimensional embeddings of `{image_encoder(stores[0]).id}`.
  Their mean is the unconditional embedding (`negative_image_embeds`). Moments: `embedding.safetensors`.
- Weights: half precision; exponential moving average of the UNet (decay {config.ema}).

## Data

{data}

Images of the val and test splits (assigned by a hash of the image's group) were not used.

## Training

{_autoencoder(config)} Diffusion: {steps} steps of {config.batch_size} images, v-prediction,
learning rate {config.lr:g}, linear decay to 0 in the last {config.cooldown} steps, condition dropout
{config.condition_dropout:.0%}. Seed {config.seed}. Code and settings: `decoders/micro_training.py`.
{_before(config)}
## Licence

Trained on images under the licences listed above; they also apply to redistribution of the weights.
"""


def _autoencoder(config: DecoderTraining) -> str:
    if config.start is not None:
        return f"Initialised with the weights of {_name(config.start)}; its auto-encoder is kept."
    return (
        f"Auto-encoder: {config.autoencoder_steps} steps of {config.autoencoder_batch_size} images, squared and "
        "absolute\nerrors of pixels, of colours and of edges."
    )


def _before(config: DecoderTraining) -> str:
    """Return the data and training sections of the card of the `start` decoder."""
    if config.start is None:
        return ""
    card = decoder_folder(config.start) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    part = text[text.find("## Data") : text.find("## Licence")] if "## Data" in text else "No model card.\n"
    return f"\n## Initial weights: {_name(config.start)}\n\n{part.replace('## ', '### ')}".rstrip() + "\n"


def _name(start: str) -> str:
    return f"`{Path(start).name}`"
