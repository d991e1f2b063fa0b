"""Training checkpoints: step_K folders, with links `latest` and `best` to two of them.

A step folder contains the files of the model's `save` (an Aligner: config.json, model.safetensors) and the state for an
exact resume: trainer.json, and trainer.safetensors with the trained weights, optimiser moments, RNG states of all
processes and the memory bank. No pickle.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csaligner.checks import InputError
from csaligner.files import move_up, point, write_folder
from csaligner.integrity import ErrorContext, load_tensors, read_sealed, save_tensors, write_sealed
from csaligner.parsing import checked

from .tracking import finite, read_values

STATE, TENSORS = "trainer.json", "trainer.safetensors"


@dataclass
class TrainerState:
    """State of a run after `step` optimiser steps. objective: see terms.ScheduledObjective.state."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    evaluations_without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    objective: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tensors:
    """Tensors of a checkpoint, by name. random: RNG states, (processes, bytes) uint8."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    memory: Mapping[str, Tensor]
    random: Tensor


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "checkpoints"

    def save(self, model: Any, state: TrainerState, tensors: Tensors) -> None:
        """Write step_K, link `latest` (and `best` if K is the best step) to it, and delete unlinked step folders."""
        name = f"step_{state.step}"
        groups = {"weights": tensors.weights, "optimizer": tensors.optimizer, "memory": tensors.memory}
        named = {f"{group}.{key}": t for group, part in groups.items() for key, t in part.items()}

        def write(temporary: Path) -> None:
            model.save(temporary / "model")
            move_up(temporary / "model")
            save_tensors(named | {"random": tensors.random}, temporary / TENSORS)
            write_sealed(temporary / STATE, asdict(state) | {"history": [finite(row) for row in state.history]})

        self.folder.mkdir(parents=True, exist_ok=True)
        write_folder(self.folder / name, write)
        if state.best_step == state.step:
            point(self.folder / "best", name)
        point(self.folder / "latest", name)
        self._drop_unused()

    @property
    def latest(self) -> Path | None:
        path = self.folder / "latest"
        return path if path.exists() else None

    def _drop_unused(self) -> None:
        used = {link.resolve().name for link in (self.folder / "latest", self.folder / "best") if link.exists()}
        for folder in self.folder.glob("step_*"):
            if folder.name not in used:
                shutil.rmtree(folder)


def read_checkpoint(folder: Path) -> tuple[TrainerState, Tensors]:
    """Read a step folder written by `save`. Raises InputError."""
    state, owner = read_state(folder), _owner(folder)
    try:
        found = load_tensors(folder / TENSORS, owner)
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}, "memory": {}}
        random = found.pop("random")
        for name, tensor in found.items():
            group, _, key = name.partition(".")
            groups[group][key] = tensor
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"checkpoint: {folder} cannot be read ({error}); {owner.advice}") from None
    return state, Tensors(groups["weights"], groups["optimizer"], groups["memory"], random)


def read_state(folder: Path) -> TrainerState:
    """Read the state of a checkpoint without its tensors."""
    if not folder.is_dir():
        raise InputError(f"checkpoint: no such folder: {folder}")
    return read_sealed(folder / STATE, _owner(folder), _state, made_by="`csaligner train`")


def _state(value: dict[str, Any]) -> TrainerState:
    return checked(TrainerState, value | {"history": [read_values(row) for row in value["history"]]})


def _owner(folder: Path) -> ErrorContext:
    return ErrorContext("checkpoint", f"delete {folder.parent} to start over")


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state that training changes: trained parameters, buffers, and scalars, which may follow a schedule."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and p.ndim}
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def load_trained(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load the result of `trained_weights`. Raises InputError if it belongs to a different model."""
    wanted = trained_weights(model)
    if set(wanted) != set(weights) or any(wanted[k].shape != weights[k].shape for k in wanted):
        raise InputError(f"checkpoint: {where} contains the weights of a different model; use the settings of that run")
    model.load_state_dict(dict(weights), strict=False)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(value) for i, s in state.items() for key, value in s.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
