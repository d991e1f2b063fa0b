"""Adapters as a folder: config.json and model.safetensors, each with its own checksum. Never pickle."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import nn

from csaligner.checks import InputError
from csaligner.config import FORMAT_VERSION, AdapterConfig, Strict, build_config
from csaligner.files import write_folder
from csaligner.integrity import ErrorContext, load_tensors, read_sealed, save_tensors, write_sealed

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CHECKPOINT = ErrorContext("checkpoint", "copy the folder again, or train anew")
FIXED = ("identity", "standardise")  # adapters that learn nothing
C = TypeVar("C", bound=Strict)


def write_model(folder: Path, config: Strict, model: nn.Module) -> None:
    """The folder appears whole or not at all."""

    def write(temporary: Path) -> None:
        write_sealed(temporary / CONFIG, config.model_dump(mode="json"))
        save_tensors(model.state_dict(), temporary / WEIGHTS)

    write_folder(folder, write)


def read_config(kind: type[C], folder: Path) -> C:
    """Raises InputError for a missing, damaged or foreign config.json."""
    parse = partial(build_config, kind)
    return read_sealed(folder / CONFIG, CHECKPOINT, parse, made_by="save()", version=FORMAT_VERSION)


def read_weights(folder: Path, model: nn.Module) -> None:
    """Fill `model` from the folder. Raises InputError for missing, damaged or other weights."""
    try:
        model.load_state_dict(load_tensors(folder / WEIGHTS, CHECKPOINT))
    except FileNotFoundError:
        raise InputError(f"checkpoint: {folder} holds no {WEIGHTS}; give a folder that save() wrote") from None
    except RuntimeError as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"checkpoint: {folder / WEIGHTS} cannot be used ({first_line})") from None


def check_size(folder: Path, adapters: Iterable[tuple[AdapterConfig, int]], dim: int) -> None:
    """InputError where the config asks for more numbers than the file has bytes, before memory is asked for.

    adapters: each with the dimensions it takes; dim: those that all give.
    """
    weights, least = folder / WEIGHTS, 0
    for adapter, dim_in in adapters:
        if adapter.name not in FIXED:
            least += dim_in * dim
        if adapter.name in ("mlp", "prior"):
            least += adapter.blocks * adapter.hidden * (dim if adapter.name == "mlp" else adapter.hidden)
    held = weights.stat().st_size if weights.is_file() else least
    if least > held:
        raise InputError(f"checkpoint: {weights} has {held:,} bytes, its {CONFIG} asks for {least:,} numbers")
