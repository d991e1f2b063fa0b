"""Reading and writing of model folders: config.json and model.safetensors with checksums, no pickle."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import nn

from csaligner.checks import InputError
from csaligner.config import FIXED, FORMAT_VERSION, AdapterConfig, Strict, build_config
from csaligner.files import write_folder
from csaligner.integrity import ErrorContext, load_tensors, read_sealed, save_tensors, write_sealed

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CHECKPOINT = ErrorContext("checkpoint", "copy the folder again, or train again")
C = TypeVar("C", bound=Strict)


def write_model(folder: Path, config: Strict, model: nn.Module) -> None:
    """Write config and weights into `folder`, atomically."""

    def write(temporary: Path) -> None:
        unset = {"names"} if getattr(config, "names", None) is None else set()  # unknown to earlier versions
        write_sealed(temporary / CONFIG, config.model_dump(mode="json", exclude=unset))
        save_tensors(model.state_dict(), temporary / WEIGHTS)

    write_folder(folder, write)


def read_config(kind: type[C], folder: Path) -> C:
    """Read config.json. Raises InputError if it is missing, damaged or of another model class."""
    parse = partial(build_config, kind)
    return read_sealed(folder / CONFIG, CHECKPOINT, parse, made_by="save()", version=FORMAT_VERSION)


def read_weights(folder: Path, model: nn.Module) -> None:
    """Load the folder's weights into `model`. Raises InputError if they are missing, damaged or do not fit."""
    try:
        model.load_state_dict(load_tensors(folder / WEIGHTS, CHECKPOINT))
    except FileNotFoundError:
        raise InputError(f"checkpoint: {folder} contains no {WEIGHTS}; give a folder written by save()") from None
    except RuntimeError as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"checkpoint: {folder / WEIGHTS} cannot be loaded ({first_line})") from None


def check_size(folder: Path, adapters: Iterable[tuple[AdapterConfig, int]], dim: int) -> None:
    """Raise InputError if config.json needs more parameters than the weights file has bytes, before allocating them.

    adapters: (config, input dimensions) of each; dim: output dimensions of all.
    """
    weights, least = folder / WEIGHTS, 0
    for adapter, dim_in in adapters:
        if adapter.name not in FIXED:
            least += dim_in * dim
        if adapter.name in ("mlp", "prior", "class_names"):
            least += adapter.blocks * adapter.hidden * (adapter.hidden if adapter.name == "prior" else dim)
    held = weights.stat().st_size if weights.is_file() else least
    if least > held:
        raise InputError(
            f"checkpoint: {weights} has {held:,} bytes, but {CONFIG} needs {least:,} parameters; copy the folder again"
        )
