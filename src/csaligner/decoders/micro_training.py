"""Training of the micro decoder: an auto-encoder, then v-prediction diffusion on its latents.

Each step uses a generator seeded by (seed, stage, step), so resumed and uninterrupted runs are identical and
checkpoints need no generator state.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from csaligner.checks import InputError
from csaligner.config import NonNegative, Positive, Strict
from csaligner.files import write_folder
from csaligner.integrity import ErrorContext, load_tensors, open_seal, save_tensors, write_sealed
from csaligner.parsing import parse_json

from .folder import decoder_folder
from .micro import (
    MicroConfig,
    MicroParts,
    build_micro,
    encode_pictures,
    load_micro,
    standardise_latents,
    take_raw_embeddings,
    take_standardised_embeddings,
    to_unit,
)

Report = Callable[[str, int, int, float], None]  # stage, step, steps, loss
STATE, WEIGHTS = "state.json", "state.safetensors"
CHUNK = 64
STAGES = ("autoencoder", "diffusion")


class DecoderTraining(Strict):
    """Settings of decoder training.

    steps: of the diffusion; the learning rate decays linearly in the last `cooldown` steps. ema: decay of the averaged
    weights that are saved. condition_dropout: fraction of embeddings replaced by the mean embedding (for guidance).
    condition_noise: maximum standard deviation of the noise on standardised embeddings, drawn uniformly (robustness to
    embeddings predicted from text). latent_noise: standard deviation of the noise on latents of the auto-encoder.
    start: micro, or the folder of a decoder written by train-decoder: initial weights of the diffusion and frozen
    auto-encoder (None: random weights)."""

    model: MicroConfig = MicroConfig()
    start: str | None = None
    autoencoder_steps: Annotated[int, Field(ge=1)] = 3000
    autoencoder_batch_size: Annotated[int, Field(ge=1)] = 16
    autoencoder_lr: Positive = 2e-3
    steps: Annotated[int, Field(ge=1)] = 12000
    batch_size: Annotated[int, Field(ge=1)] = 64
    lr: Positive = 5e-4
    warmup: Annotated[int, Field(ge=1)] = 200
    cooldown: Annotated[int, Field(ge=1)] = 2000
    ema: Annotated[float, Field(gt=0, lt=1)] = 0.999
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    condition_noise: NonNegative = 0.25
    latent_noise: NonNegative = 0.05
    bf16: bool = True
    checkpoint_every: Annotated[int, Field(ge=1)] = 250
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Pictures:
    """Training data of a decoder: pixels (N, 3, S, S) uint8 and raw image embeddings (N, D) float32."""

    pixels: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Moments:
    """Moments of real embeddings: mean and standard deviation per dimension, median row length."""

    mean: Tensor
    std: Tensor
    norm: float

    @classmethod
    def of(cls, embeddings: Tensor) -> Moments:
        """Compute the moments; standard deviations are at least a tenth of their mean, for stable division."""
        std = embeddings.std(dim=0)
        return cls(
            embeddings.mean(dim=0), std.clamp_min(0.1 * float(std.mean())), float(embeddings.norm(dim=1).median())
        )


class DecoderTrainer:
    """Two-stage training with checkpoints in `out`; an interrupted run resumes at its last checkpoint.

    parts: current weights; averaged: exponential moving average of the UNet's weights.
    """

    def __init__(self, pictures: Pictures, config: DecoderTraining, out: Path, report: Report) -> None:
        torch.manual_seed(config.seed)
        self.moments = Moments.of(pictures.embeddings)
        self._pictures, self._config, self._out, self._report = pictures, config, out, report
        self._stage, self._step = 0, 0
        if config.start is None:
            self.parts: MicroParts = build_micro(config.model)
        else:
            self.parts = load_micro(decoder_folder(config.start), config.model)
            take_standardised_embeddings(self.parts.unet, self.moments.mean, self.moments.std)
            self._stage = 1
        self.averaged = {k: v.clone() for k, v in self.parts.unet.state_dict().items()}
        for module in (self.parts.unet, self.parts.movq):
            module.to(memory_format=torch.channels_last)

    @property
    def step(self) -> int:
        """Number of completed diffusion steps."""
        return self._step if self._stage == 1 else 0

    def finished(self) -> MicroParts:
        """Return the averaged model, which takes raw embeddings."""
        unet = copy.deepcopy(self.parts.unet)
        unet.load_state_dict(self.averaged)
        take_raw_embeddings(unet, self.moments.mean, self.moments.std)
        return MicroParts(unet.eval(), self.parts.movq.eval(), self.parts.scheduler)

    def fit(self) -> None:
        """Train up to config.steps; a checkpoint with more steps is left unchanged."""
        self.parts.movq.train()
        optimiser = self._optimiser(self.parts.movq, self._config.autoencoder_lr)
        self._resume(optimiser)
        if self._stage == 0:
            self._fit_autoencoder(optimiser)
        self.parts.movq.eval()
        optimiser = self._optimiser(self.parts.unet, self._config.lr)
        self._resume(optimiser)
        self._fit_diffusion(optimiser, self._latents())

    def _fit_autoencoder(self, optimiser: torch.optim.Optimizer) -> None:
        config = self._config
        while self._step < config.autoencoder_steps:
            self._set_lr(optimiser, config.autoencoder_lr * _one_cycle(self._step / config.autoencoder_steps))
            loss = self._autoencoder_loss(self._draw(config.autoencoder_batch_size)[0])
            self._update(optimiser, self.parts.movq, loss, config.autoencoder_steps)
        self.parts.movq.eval()
        latents = self._latents()
        standardise_latents(self.parts.movq, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        self._stage, self._step = 1, 0
        self._save(self._optimiser(self.parts.unet, config.lr))

    def _fit_diffusion(self, optimiser: torch.optim.Optimizer, latents: Tensor) -> None:
        config, unet = self._config, self.parts.unet.train()
        while self._step < config.steps:
            rising, falling = (self._step + 1) / config.warmup, (config.steps - self._step) / config.cooldown
            self._set_lr(optimiser, config.lr * min(1.0, rising, falling))
            loss = self._diffusion_loss(unet, latents)
            self._update(optimiser, unet, loss, config.steps)

    def _autoencoder_loss(self, rows: Tensor) -> Tensor:
        """4 |y - x|^2 + 8 |colour of y - colour of x|^2 + (L1 of pixels + L1 of their differences) / 2, as means.

        Colour is the deviation from the grey value of the pixel; it is a small part of the squared error and would be
        learned last without its own weight. Every other batch has permuted channels, which balances the hues.
        """
        movq, generator = self.parts.movq, self._generator(1)
        x = to_unit(self._pictures.pixels[rows])
        if self._step % 2:
            x = x[:, torch.randperm(3, generator=generator)]
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._config.bf16):
            z = movq.encode(x).latents
            noise = torch.randn(z.shape, generator=generator) * self._config.latent_noise
            y = movq.decode(z + noise * z.detach().std(), force_not_quantize=True).sample
        y = y.float()
        edges = l1_loss(y.diff(dim=2), x.diff(dim=2)) + l1_loss(y.diff(dim=3), x.diff(dim=3))
        sharp: Tensor = (l1_loss(y, x) + edges) / 2
        colour: Tensor = mse_loss(_colour(y), _colour(x))
        loss: Tensor = 4 * mse_loss(y, x) + 8 * colour + sharp + 1e-3 * z.float().square().mean()
        return loss

    def _diffusion_loss(self, unet: Any, latents: Tensor) -> Tensor:
        """Mean |v - v'|^2, v = a e - s z (Salimans & Ho 2022), at uniformly drawn times."""
        config, scheduler = self._config, self.parts.scheduler
        rows, generator = self._draw(config.batch_size)
        z = latents[rows]
        condition = (self._pictures.embeddings[rows] - self.moments.mean) / self.moments.std
        level = torch.rand(len(rows), 1, generator=generator) * config.condition_noise
        condition = condition + level * torch.randn(condition.shape, generator=generator)
        condition = condition * (torch.rand(len(rows), 1, generator=generator) >= config.condition_dropout)
        noise = torch.randn(z.shape, generator=generator)
        times = torch.randint(0, scheduler.config.num_train_timesteps, (len(rows),), generator=generator)
        noisy, wanted = scheduler.add_noise(z, noise, times), scheduler.get_velocity(z, noise, times)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            found = unet(noisy, times, None, added_cond_kwargs={"image_embeds": condition}).sample
        return mse_loss(found[:, : z.shape[1]].float(), wanted)

    def _update(self, optimiser: torch.optim.Optimizer, module: nn.Module, loss: Tensor, steps: int) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if self._stage == 1:
            decay = min(self._config.ema, (1 + self._step) / (10 + self._step))
            for name, value in module.state_dict().items():
                self.averaged[name].lerp_(value, 1 - decay)
        self._step += 1
        self._report(STAGES[self._stage], self._step, steps, float(loss.detach()))
        if self._step % self._config.checkpoint_every == 0 or self._step == steps:
            self._save(optimiser)

    def _latents(self) -> Tensor:
        with torch.inference_mode():
            chunks = [encode_pictures(self.parts.movq, p) for p in torch.split(self._pictures.pixels, CHUNK)]
        return torch.cat(chunks).clone()

    def _draw(self, count: int) -> tuple[Tensor, torch.Generator]:
        generator = self._generator(0)
        return torch.randint(0, len(self._pictures.pixels), (count,), generator=generator), generator

    def _generator(self, stream: int) -> torch.Generator:
        key = ((self._config.seed * 2 + self._stage) * 10**7 + self._step) * 2 + stream
        return torch.Generator().manual_seed(key)

    @staticmethod
    def _optimiser(module: nn.Module, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-2)

    @staticmethod
    def _set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
        for group in optimiser.param_groups:
            group["lr"] = lr

    def _save(self, optimiser: torch.optim.Optimizer) -> None:
        tensors = _prefixed("unet", self.parts.unet.state_dict()) | _prefixed("movq", self.parts.movq.state_dict())
        tensors |= _prefixed("averaged", self.averaged)
        for number, values in optimiser.state_dict()["state"].items():
            tensors |= _prefixed(f"optimiser.{number}", values)
        state = {"stage": self._stage, "step": self._step, "config": self._config.model_dump(mode="json")}

        def write(folder: Path) -> None:
            write_sealed(folder / STATE, state)
            save_tensors(tensors, folder / WEIGHTS)

        write_folder(self._out / "checkpoint", write)

    def _resume(self, optimiser: torch.optim.Optimizer) -> None:
        """Load the checkpoint, if any; the optimiser state only if it belongs to the same stage."""
        folder = self._out / "checkpoint"
        if not folder.is_dir():
            return
        state, tensors = read_training(folder)
        _same_settings(folder, state["config"], self._config)
        self._stage, self._step = state["stage"], state["step"]
        self.parts.unet.load_state_dict(_part(tensors, "unet"))
        self.parts.movq.load_state_dict(_part(tensors, "movq"))
        self.averaged = _part(tensors, "averaged")
        trained = self.parts.movq if self._stage == 0 else self.parts.unet
        if optimiser.param_groups[0]["params"][0] is not next(trained.parameters()):
            return
        whole = optimiser.state_dict()
        names = {name.split(".")[1] for name in tensors if name.startswith("optimiser.")}
        whole["state"] = {int(n): _part(tensors, f"optimiser.{n}") for n in names}
        optimiser.load_state_dict(whole)


def read_training(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read state and tensors of a checkpoint. Raises InputError if it is damaged or incomplete."""
    owner = ErrorContext("out", f"delete {folder} to start over")
    try:
        state = open_seal(folder / STATE, parse_json((folder / STATE).read_text(encoding="utf-8")), owner)
        if {"stage", "step", "config"} <= set(state):
            return state, load_tensors(folder / WEIGHTS, owner)
        reason = "a key is missing"
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = str(error)
    raise InputError(f"out: {folder / STATE} or {WEIGHTS} cannot be read ({reason}); {owner.advice}")


def _same_settings(folder: Path, theirs: Mapping[str, Any], ours: DecoderTraining) -> None:
    """Raise InputError if settings other than lengths and checkpoint interval have changed."""
    free = {"steps", "cooldown", "checkpoint_every"}
    changed = [k for k, v in ours.model_dump(mode="json").items() if k not in free and theirs.get(k) != v]
    if changed:
        raise InputError(f"out: {folder} was trained with other settings ({', '.join(changed)}); use another folder")


def _colour(x: Tensor) -> Tensor:
    return x - x.mean(dim=1, keepdim=True)


def _one_cycle(progress: float) -> float:
    """Return a factor that rises linearly over the first tenth, then falls linearly to 0.01."""
    return progress / 0.1 if progress < 0.1 else 1 - 0.99 * (progress - 0.1) / 0.9


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
