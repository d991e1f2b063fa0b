"""Loading of transformers weights: device selection, quiet loading, check for missing weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from csaligner.checks import InputError
from csaligner.extras import install_command

from .folder import ModelFolder


def resolve_device(device: str) -> str:
    """Return the torch device; `auto` is a GPU if available. Raises InputError for an unknown or unavailable device."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: {device!r} cannot be used ({str(error).splitlines()[0]})") from None
    return device


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence progress bars and warnings of transformers while weights are loaded."""
    try:
        from transformers.utils import logging as hf
    except ImportError:
        raise InputError(f"encoder: transformers is not installed; {install_command('hf')}") from None
    bars, level = hf.is_progress_bar_enabled(), hf.get_verbosity()
    hf.disable_progress_bar()
    hf.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()


def load_model(kind: str, folder: ModelFolder, dtype: str) -> tuple[Any, bool]:
    """Load the folder's weights into the transformers class `kind` (safetensors only, no code from the folder).

    Returns the model and whether its pooler, if any, has weights.
    """
    import transformers

    name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    try:
        model = getattr(transformers, kind).from_pretrained(
            folder.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **_tower_config(kind, folder),
            **{name: getattr(torch, dtype)},
        )
    except Exception as error:  # the exception type depends on the architecture
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"encoder: {folder.base} does not load as {kind} ({reason})") from None
    model, report = model
    poolers = [k for k in report["missing_keys"] if "pooler" in k]
    missing = sorted(k for k in report["missing_keys"] if k not in poolers and "position_ids" not in k)
    if missing:
        raise InputError(
            f"encoder: {folder.base} lacks {len(missing)} of the weights of {kind} (first: {missing[0]}); "
            "give a folder written by save_pretrained"
        )
    return model, not poolers


def _tower_config(kind: str, folder: ModelFolder) -> dict[str, Any]:
    """Set the projection width of a CLIP tower to that of the whole model; the tower's own config may differ."""
    if folder.model_type != "clip":
        return {}
    from transformers import CLIPConfig

    whole = CLIPConfig.from_pretrained(folder.path, local_files_only=True)
    tower = whole.text_config if "Text" in kind else whole.vision_config
    tower.projection_dim = whole.projection_dim
    return {"config": tower}
