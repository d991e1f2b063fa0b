"""`csaligner train-decoder`: stores in, a decoder folder out."""

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
    """Train (or go on training) the micro decoder on the train splits; returns the folder of the decoder.

    An interrupted call goes on where it stopped. A call whose `steps` have been done already saves the decoder as
    it is. Raises InputError for stores without picture files or of different image encoders, for a `start` of another
    image encoder or size, and for other settings than those that `out` was begun with.
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
    """What it is, what it has seen, how it was trained, whose pictures these are: README.md of the folder."""
    distinct = {store.sha256: store for store in stores}.values()
    data = "\n".join(
        f"- {s.dataset}: {s.counts['train'][0]} pictures of the train split, counted "
        f"{[t.sha256 for t in stores].count(s.sha256)} time(s) and once more mirrored. {s.attribution}"
        for s in distinct
    )
    model = config.model
    return f"""# A small unCLIP decoder

Image embeddings in, pictures of {model.size} x {model.size} pixels out. Of the classes of Kandinsky 2.2's decoder
(`KandinskyV22Pipeline` of diffusers), trained from nothing by `csaligner train-decoder`. For trying things out; too
small for anything else.

- Input: raw (not normalised) {model.embedding_dim}-dimensional embeddings of `{image_encoder(stores[0]).id}`.
  Their mean stands for no picture (`negative_image_embeds`). Moments: `embedding.safetensors`.
- Weights: half precision; the UNet's are averaged over training (decay {config.ema}).

## Data

{data}

Pictures of the val and test splits (a hash of each picture's group decides) were never seen.

## Training

{_autoencoder(config)} Diffusion: {steps} steps of {config.batch_size} pictures, v-prediction,
learning rate {config.lr:g}, along a line to 0 in the last {config.cooldown}, embedding replaced by the mean one for
{config.condition_dropout:.0%} of the pictures. Seed {config.seed}. Code and settings: `decoders/micro_training.py`.
{_before(config)}
## Licence

Trained on pictures under the licences named above; whoever passes the weights on heeds them.
"""


def _autoencoder(config: DecoderTraining) -> str:
    if config.start is not None:
        return f"Begun with the weights of {_name(config.start)}; its auto-encoder is kept."
    return (
        f"Auto-encoder: {config.autoencoder_steps} steps of {config.autoencoder_batch_size} pictures, squared and "
        "absolute\nerrors of pixels, of colours and of edges."
    )


def _before(config: DecoderTraining) -> str:
    """What the decoder that training began with says of its own training."""
    if config.start is None:
        return ""
    card = decoder_folder(config.start) / "README.md"
    said = card.read_text(encoding="utf-8") if card.is_file() else ""
    told = said[said.find("## Data") : said.find("## Licence")] if "## Data" in said else "It came without a card.\n"
    return f"\n## Before: {_name(config.start)}\n\n{told.replace('## ', '### ')}".rstrip() + "\n"


def _name(start: str) -> str:
    return f"`{Path(start).name}`"
