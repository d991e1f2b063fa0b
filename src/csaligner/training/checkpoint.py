"""Training state on disk: step_K folders, with `latest` and `best` as links to two of them.

A step folder holds the model (config.json, model.safetensors) and what an exact continuation needs
(trainer.json, trainer.safetensors: optimiser moments and random state). No pickle.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.files import point, write_folder, write_json


@dataclass
class TrainerState:
    """Where a run stands after `step` optimiser steps."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    evaluations_without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"

    def save(self, model: Aligner, optimizer: torch.optim.Optimizer, state: TrainerState) -> None:
        """Write step_K, point `latest` (and `best`, where K is the best step) to it, drop what nothing points to."""
        name = f"step_{state.step}"
        tensors = {f"optimizer.{k}": v for k, v in _flatten(optimizer).items()}
        tensors["rng"] = torch.get_rng_state()

        def write(temporary: Path) -> None:
            model.save(temporary / "model")
            for file in (temporary / "model").iterdir():
                file.rename(temporary / file.name)
            (temporary / "model").rmdir()
            save_file(tensors, temporary / "trainer.safetensors")
            write_json(temporary / "trainer.json", asdict(state))

        self.folder.mkdir(parents=True, exist_ok=True)
        write_folder(self.folder / name, write)
        if state.best_step == state.step:
            point(self.folder / "best", name)
        point(self.folder / "latest", name)
        self._drop_unused()

    def restore(self, model: Aligner, optimizer: torch.optim.Optimizer) -> TrainerState:
        """Load `latest` into model and optimiser and set the random state; a fresh state where there is none."""
        latest = self.folder / "latest"
        if not latest.exists():
            return TrainerState()
        try:
            tensors = load_file(latest / "trainer.safetensors")
            state = TrainerState(**json.loads((latest / "trainer.json").read_text(encoding="utf-8")))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise InputError(
                f"checkpoint: {latest} cannot be read ({error}); delete {self.folder} to start over"
            ) from None
        model.load_state_dict(Aligner.load(latest).state_dict())
        _unflatten(optimizer, {k.removeprefix("optimizer."): v for k, v in tensors.items() if k != "rng"})
        torch.set_rng_state(tensors["rng"])
        return state

    def _drop_unused(self) -> None:
        used = {link.resolve().name for link in (self.folder / "latest", self.folder / "best") if link.exists()}
        for folder in self.folder.glob("step_*"):
            if folder.name not in used:
                shutil.rmtree(folder)


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(value) for i, s in state.items() for key, value in s.items()}


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
