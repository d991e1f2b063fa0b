"""Training of the micro decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from csaligner.checks import InputError
from csaligner.decoders.contract import Contract
from csaligner.decoders.decoder import Sampling, open_decoder
from csaligner.decoders.micro import (
    MicroConfig,
    MicroParts,
    build_micro,
    encode_pictures,
    save_micro,
    standardise_latents,
    take_raw_embeddings,
)
from csaligner.decoders.micro_training import DecoderTrainer, DecoderTraining, Moments, Pictures

DIM = 6
TINY = MicroConfig(size=8, embedding_dim=DIM, autoencoder_channels=(8, 8), unet_channels=(16, 16), latent_channels=2)


@pytest.fixture
def parts(diffusers: Any) -> MicroParts:
    torch.manual_seed(0)
    return build_micro(TINY)


def pictures() -> Pictures:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (12, 3, 8, 8), generator=g, dtype=torch.uint8)
    return Pictures(pixels, torch.randn(12, DIM, generator=g) * 3 + 2)


def silent(stage: str, step: int, steps: int, loss: float) -> None:
    return None


def training(**changes: Any) -> DecoderTraining:
    small = {"autoencoder_steps": 4, "autoencoder_batch_size": 4, "steps": 5, "batch_size": 4, "checkpoint_every": 2}
    return DecoderTraining.model_validate({"model": TINY, "bf16": False, **small, **changes})


def test_the_unet_takes_raw_embeddings_after_the_standardisation_is_folded_in(parts: MicroParts) -> None:
    mean, std = torch.linspace(-1, 2, DIM), torch.linspace(0.5, 3, DIM)
    z, times, x = torch.randn(3, 2, 4, 4), torch.tensor([10, 500, 900]), torch.randn(3, DIM)

    def run(condition: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = parts.unet(z, times, None, added_cond_kwargs={"image_embeds": condition}).sample
        return found

    before = run(x)
    take_raw_embeddings(parts.unet, mean, std)
    torch.testing.assert_close(run(mean + std * x), before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(run(x), before, atol=1e-3)


def test_latents_are_standardised_and_pictures_do_not_change(parts: MicroParts) -> None:
    movq, pixels = parts.movq.eval(), pictures().pixels
    with torch.no_grad():
        z = encode_pictures(movq, pixels)
        before = movq.decode(z, force_not_quantize=True).sample
        standardise_latents(movq, z.mean((0, 2, 3)), z.std((0, 2, 3)))
        z = encode_pictures(movq, pixels)
        torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(movq.decode(z, force_not_quantize=True).sample, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first", [{"steps": 2}, {"steps": 4}])
def test_an_interrupted_training_ends_at_the_same_weights(
    first: dict[str, int], diffusers: Any, tmp_path: Path
) -> None:
    whole = DecoderTrainer(pictures(), training(), tmp_path / "whole", silent)
    whole.fit()
    DecoderTrainer(pictures(), training(**first), tmp_path / "parts", silent).fit()
    again = DecoderTrainer(pictures(), training(), tmp_path / "parts", silent)
    again.fit()
    assert again.step == whole.step == 5
    for name, value in whole.averaged.items():
        torch.testing.assert_close(again.averaged[name], value, msg=name)
    shorter = DecoderTrainer(pictures(), training(steps=1), tmp_path / "parts", silent)
    shorter.fit()
    assert shorter.step == 5
    with pytest.raises(InputError, match=r"\blr\b"):
        DecoderTrainer(pictures(), training(lr=1.0), tmp_path / "parts", silent).fit()


def test_training_learns_the_pictures(diffusers: Any, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {"autoencoder": [], "diffusion": []}

    def note(stage: str, step: int, steps: int, loss: float) -> None:
        losses[stage].append(loss)

    flat = Pictures(torch.full((8, 3, 8, 8), 200, dtype=torch.uint8), pictures().embeddings[:8])
    config = training(autoencoder_steps=40, steps=40, warmup=1, lr=3e-3, checkpoint_every=100)
    DecoderTrainer(flat, config, tmp_path, note).fit()
    assert sum(losses["autoencoder"][-5:]) < 0.5 * sum(losses["autoencoder"][:5])
    assert sum(losses["diffusion"][-5:]) < 0.9 * sum(losses["diffusion"][:5])


def test_a_saved_decoder_opens_behind_the_door_of_all(parts: MicroParts, tmp_path: Path) -> None:
    moments = Moments.of(pictures().embeddings)
    contract = Contract("micro", DIM, "some:encoder", "abc", moments.mean, moments.std, moments.norm, moments.mean)
    save_micro(parts, contract, tmp_path / "decoder", "# card\n")
    assert (tmp_path / "decoder" / "README.md").read_text() == "# card\n"
    assert not list((tmp_path / "decoder").rglob("*.bin"))
    decoder = open_decoder(str(tmp_path / "decoder"))
    assert (decoder.contract.dim, decoder.contract.encoder, decoder.contract.norm) == (DIM, "abc", moments.norm)
    found = decoder.decode(pictures().embeddings[:2], Sampling(steps=2))
    assert [row[0].size for row in found] == [(8, 8), (8, 8)]


def test_a_training_begins_with_the_weights_of_a_saved_decoder(parts: MicroParts, tmp_path: Path) -> None:
    mean, std = torch.linspace(-1, 2, DIM), torch.linspace(0.5, 3, DIM)
    take_raw_embeddings(parts.unet, mean, std)
    folder = tmp_path / "decoder"
    save_micro(parts, Contract("micro", DIM, "some:encoder", "abc"), folder, "# card\n")
    begun = DecoderTrainer(pictures(), training(start=str(folder)), tmp_path / "again", silent)
    moments = Moments.of(pictures().embeddings)
    z, times, x = torch.randn(3, 2, 4, 4), torch.tensor([10, 500, 900]), torch.randn(3, DIM)
    with torch.no_grad():
        raw = moments.mean + moments.std * x
        before = parts.unet(z, times, None, added_cond_kwargs={"image_embeds": raw}).sample
        after = begun.parts.unet(z, times, None, added_cond_kwargs={"image_embeds": x}).sample
    torch.testing.assert_close(after, before, atol=2e-2, rtol=2e-2)  # half precision on disk
    begun.fit()
    for name, value in parts.movq.state_dict().items():  # the auto-encoder is kept
        torch.testing.assert_close(begun.finished().movq.state_dict()[name], value.half().float(), msg=name)
    moved = begun.finished().unet.state_dict()
    assert any(not torch.equal(moved[k], v.half().float()) for k, v in parts.unet.state_dict().items())


def test_a_start_of_another_size_is_told(parts: MicroParts, tmp_path: Path) -> None:
    save_micro(parts, Contract("micro", DIM), tmp_path / "decoder", "# card\n")
    wider = training(start=str(tmp_path / "decoder"), model=TINY.model_copy(update={"unet_channels": (16, 32)}))
    with pytest.raises(InputError, match=r"^start"):
        DecoderTrainer(pictures(), wider, tmp_path / "again", silent)
