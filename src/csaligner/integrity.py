"""Files that know when they were damaged: JSON and safetensors that carry their own SHA-256, and a list of the
SHA-256 of files that other libraries write.

A file without one (an older csaligner's, another program's) is read as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checks import InputError
from .files import sha256_of, write_json
from .parsing import parse_json

T = TypeVar("T")
SEAL = "sha256"
CHECKSUMS = "checksums.json"


@dataclass(frozen=True)
class ErrorContext:
    """What a file belongs to, for messages. name: how they begin; advice: how to go on where it is damaged."""

    name: str
    advice: str


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """write_json with the SHA-256 of everything else beside it, under the key `sha256`."""
    plain = {key: entry for key, entry in value.items() if key != SEAL}
    write_json(path, plain | {SEAL: _digest(plain)})


def read_sealed(
    path: Path,
    of: ErrorContext,
    parse: Callable[[dict[str, Any]], T],
    *,
    made_by: str = "csaligner",
    version: int | None = None,
) -> T:
    """What `parse` makes of the JSON that write_sealed wrote to `path`.

    made_by: what writes the folder it lies in, for the message where it is missing; version: its format_version, None:
    it has none. Raises InputError where it is missing, is no JSON, has another format, was changed since, or where
    `parse` raises a ValueError, KeyError, TypeError or AttributeError.
    """
    if not path.is_file():
        raise InputError(f"{of.name}: {path.parent} holds no {path.name}; give a folder that {made_by} wrote")
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise TypeError(f"it is a {type(value).__name__}, wanted names and values")
        if version is not None and value["format_version"] != version:
            found = value["format_version"]
            raise InputError(f"{of.name}: {path} has format {found}, this csaligner reads {version}; {of.advice}")
        return parse(open_seal(path, value, of))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{of.name}: {path} cannot be read ({reason}); {of.advice}") from None


def open_seal(path: Path, value: Any, of: ErrorContext) -> dict[str, Any]:
    """What write_sealed was given, from the JSON of `path`; InputError where it was changed since."""
    if not isinstance(value, dict):
        raise damaged(path, of)
    plain = {key: entry for key, entry in value.items() if key != SEAL}
    if SEAL in value and value[SEAL] != _digest(plain):
        raise damaged(path, of)
    return plain


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file with the SHA-256 of its names and tensors in its metadata."""
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_safetensors(ready, path, {SEAL: _digest_of_tensors(ready)})


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """safetensors' own save_file, for a file that others may read as they may any other new one: it makes its files
    for their owner alone."""
    path.touch()
    usual = path.stat().st_mode
    save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    path.chmod(usual)


def load_tensors(path: Path, of: ErrorContext) -> dict[str, Tensor]:
    """The tensors of a safetensors file; InputError where save_tensors wrote others, or where it cannot
    be read. Raises FileNotFoundError where there is none."""
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{of.name}: {path} cannot be read ({reason}); {of.advice}") from None
    if SEAL in metadata and metadata[SEAL] != _digest_of_tensors(tensors):
        raise damaged(path, of)
    return tensors


def write_checksums(folder: Path, files: Iterable[Path] | None = None, **more: Any) -> None:
    """checksums.json in `folder`: size and SHA-256 of these files (None: of all below it), and `more`, sealed."""
    found = sorted(files if files is not None else (p for p in folder.rglob("*") if p.is_file()))
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, SEAL: sha256_of(path)}
        for path in found
        if path != folder / CHECKSUMS
    }
    write_sealed(folder / CHECKSUMS, {"files": listed} | more)


def read_checksums(folder: Path, of: ErrorContext) -> dict[str, Any] | None:
    """What write_checksums wrote; None where it wrote nothing. InputError where it was damaged."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return None
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        files = value["files"].values()
        whole = all(isinstance(entry["bytes"], int) and isinstance(entry[SEAL], str) for entry in files)
    except (ValueError, AttributeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise damaged(path, of)
    return open_seal(path, value, of)


def check_checksums(folder: Path, of: ErrorContext, *, up_to: int | None = None, above: int = 0) -> None:
    """InputError where a listed file of `folder` is gone, has another size, or another SHA-256.

    up_to, above: SHA-256 of files of `above` < bytes <= `up_to` alone; sizes of all.
    """
    listed = read_checksums(folder, of)
    for name, entry in (listed or {"files": {}})["files"].items():
        path, size = folder / name, entry["bytes"]
        if not path.is_file():
            raise InputError(f"{of.name}: {path} is missing; {of.advice}")
        if path.stat().st_size != size:
            raise InputError(f"{of.name}: {path} has {path.stat().st_size:,} bytes, wanted {size:,}; {of.advice}")
        if above < size <= (size if up_to is None else up_to) and sha256_of(path) != entry[SEAL]:
            raise damaged(path, of)


def damaged(path: Path, of: ErrorContext) -> InputError:
    return InputError(f"{of.name}: {path} is not as it was written (its SHA-256 differs); {of.advice}")


def _digest(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # tuples as lists, keys as text: as a reader sees them
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
