"""Decoder folders in diffusers format, checked before weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from csaligner.checks import InputError, nearest
from csaligner.extras import install_command
from csaligner.parsing import parse_json

INDEX = "model_index.json"
NAMES: Mapping[str, str] = {
    "micro": "",  # bundled
    "kandinsky-2.2": "kandinsky-community/kandinsky-2-2-decoder",
    "karlo": "kakaobrain/karlo-v1-alpha-image-variations",
    "stable-unclip": "stabilityai/stable-diffusion-2-1-unclip",
}
NO_WEIGHTS = ("Scheduler", "Tokenizer", "TokenizerFast", "ImageProcessor", "ImageProcessorPil", "FeatureExtractor")
DIFFUSERS = ("diffusers", "transformers", "stable_diffusion", "unclip", "kandinsky2_2")  # libraries of its parts
HEADROOM = 1.3  # memory for activations, as a multiple of the weights


def decoder_folder(name_or_path: str) -> Path:
    """Return the folder of a name, a path or a Hub repository (downloaded if not in the cache).

    Raises InputError for an unknown name, and for a repository that cannot be downloaded.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if name_or_path == "micro":
        return Path(str(resources.files("csaligner"))) / "assets" / "micro-decoder"
    repository = NAMES.get(name_or_path, name_or_path)
    if repository.count("/") != 1 or repository.startswith((".", "/")):
        raise InputError(
            f"decoder: {name_or_path!r} is neither a folder nor a known name; {nearest(name_or_path, NAMES)}"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(f"decoder: {error}; {install_command('generate')}") from None
    try:
        found = snapshot_download(repository, allow_patterns=["*.json", "*.txt", "*.safetensors"])
    except Exception as error:  # the Hub client raises many exception types
        reason = type(error).__name__
        raise InputError(
            f"decoder: {repository} is not in the cache and cannot be downloaded ({reason}); "
            "give the path of a local copy, or --decoder micro, which needs no download"
        ) from None
    return Path(found)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"decoder: {path.parent} contains no {path.name}; give a folder saved by diffusers") from None
    except ValueError as error:
        raise InputError(f"decoder: {path} is not valid JSON ({error}); copy the folder again") from None
    if not isinstance(value, dict):
        raise InputError(f"decoder: {path} is not a JSON object; copy the folder again")
    return value


def check_parts(folder: Path, index: Mapping[str, Any], libraries: Sequence[str] = DIFFUSERS) -> dict[str, Path]:
    """Return name -> folder of the parts of a pipeline. Raises InputError for a missing part, a part without
    safetensors weights (pickle is never read), a part of a library not in `libraries` (it would be imported), and
    for code."""
    code = next(folder.rglob("*.py"), None)
    if code is not None:
        raise InputError(f"decoder: {code} is custom code, which is not run; use another decoder")
    parts = {}
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry[:1] == [None]:
            continue
        if len(entry) != 2 or entry[0] not in libraries or not str(entry[1]).isidentifier():
            raise InputError(
                f"decoder: {folder}: its part {name!r} is {entry}, wanted a class of {' or '.join(libraries[:2])}"
            )
        part = folder / name
        if Path(name).name != name:
            raise InputError(f"decoder: {folder}: its part {name!r} is outside of the folder; copy it again")
        if not part.is_dir():
            raise InputError(f"decoder: {folder} lacks the part {name!r} listed in {INDEX}; copy it again")
        if not str(entry[1]).endswith(NO_WEIGHTS):
            if not (part / "config.json").is_file():
                raise InputError(f"decoder: {part} contains no config.json; copy the folder again")
            if not any(part.glob("*.safetensors")):
                raise InputError(
                    f"decoder: {part} contains no *.safetensors; use safetensors weights, pickle is not read"
                )
        parts[name] = part
    return parts


def check_memory(folder: Path, parts: Mapping[str, Path], bytes_per_weight: int, free: int | None) -> None:
    """Raise InputError if weights and activations do not fit into `free` bytes."""
    files = [file for part in parts.values() for file in sorted(part.glob("*.safetensors"))]
    needed = math.ceil(sum(map(_weights_in, files)) * bytes_per_weight * HEADROOM)
    if free is not None and needed > free:
        raise InputError(
            f"decoder: {folder} needs about {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free; "
            "close other programs, or use a smaller decoder"
        )


def free_memory(device: torch.device) -> int | None:
    """Return free bytes; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _weights_in(file: Path) -> int:
    try:
        with safe_open(file, framework="pt") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"decoder: {file} is damaged ({' '.join(str(error).split())}); copy it again") from None
