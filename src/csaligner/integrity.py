"""Checksums: JSON and safetensors files with a SHA-256 of their content, and checksums.json for other files.

Files without a checksum (from older versions or other programs) are read without verification.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checks import InputError
from .files import CHECKSUMS, sha256_of, write_json
from .parsing import parse_json

T = TypeVar("T")
SEAL = "sha256"


@dataclass(frozen=True)
class ErrorContext:
    """Context of error messages. name: prefix of the message; advice: what to do if the file is damaged."""

    name: str
    advice: str


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with a SHA-256 of its content under the key `sha256`."""
    plain = {key: entry for key, entry in value.items() if key != SEAL}
    write_json(path, plain | {SEAL: _digest(plain)})


def read_sealed(
    path: Path,
    of: ErrorContext,
    parse: Callable[[dict[str, Any]], T],
    *,
    made_by: str = "csaligner",
    version: int | Sequence[int] | None = None,
) -> T:
    """Read a JSON file of write_sealed and return parse(content).

    made_by: writer of the folder, for messages; version: expected format_version, or several in ascending order, None:
    not checked. Raises InputError if the file is missing, not valid JSON, of another format version or modified, or if
    `parse` raises a ValueError, KeyError, TypeError or AttributeError.
    """
    if not path.is_file():
        found = f"contains no {path.name}" if path.parent.is_dir() else "is not a folder"
        raise InputError(f"{of.name}: {path.parent} {found}; give a folder written by {made_by}")
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise TypeError(f"got a {type(value).__name__}, wanted a JSON object")
        known = [version] if isinstance(version, int) else version
        if known is not None and value["format_version"] not in known:
            raise _other_version(path, value["format_version"], known[-1], of)
        return parse(open_seal(path, value, of))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{of.name}: {path} cannot be read ({reason}); {of.advice}") from None


def _other_version(path: Path, found: Any, wanted: int, of: ErrorContext) -> InputError:
    if isinstance(found, int) and found > wanted:
        return InputError(
            f"{of.name}: {path} was written by a later version of csaligner (format {found}, this one reads {wanted}); "
            "update csaligner with `pip install --upgrade csaligner`"
        )
    return InputError(f"{of.name}: {path} has format version {str(found)[:40]}, wanted {wanted}; {of.advice}")


def open_seal(path: Path, value: Any, of: ErrorContext) -> dict[str, Any]:
    """Verify the checksum of parsed JSON and return it without the checksum. Raises InputError if it was modified."""
    if not isinstance(value, dict):
        raise damaged(path, of)
    plain = {key: entry for key, entry in value.items() if key != SEAL}
    if SEAL in value and value[SEAL] != _digest(plain):
        raise damaged(path, of)
    return plain


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file with a SHA-256 of names and tensors in its metadata."""
    ready = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_safetensors(ready, path, {SEAL: _digest_of_tensors(ready)})


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with default permissions; save_file makes files readable by the owner only."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    path.chmod(mode)


def load_tensors(path: Path, of: ErrorContext) -> dict[str, Tensor]:
    """Load a safetensors file. Raises InputError if it is modified or cannot be read, FileNotFoundError if it is
    missing."""
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
    """Write checksums.json: size and SHA-256 of `files` (default: all below `folder`), and `more`."""
    found = sorted(files if files is not None else (p for p in folder.rglob("*") if p.is_file()))
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, SEAL: sha256_of(path)}
        for path in found
        if path != folder / CHECKSUMS
    }
    write_sealed(folder / CHECKSUMS, {"files": listed} | more)


def read_checksums(folder: Path, of: ErrorContext) -> dict[str, Any] | None:
    """Read checksums.json; None if there is none. Raises InputError if it is damaged."""
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


def check_checksums(
    folder: Path,
    of: ErrorContext,
    *,
    up_to: int | None = None,
    above: int = 0,
    skip: Callable[[str], bool] = lambda name: False,
) -> None:
    """Raise InputError if a listed file is missing or has another size or SHA-256.

    up_to, above: verify the SHA-256 only of files of `above` < bytes <= `up_to`; sizes are always verified. skip: names
    of files that are not here.
    """
    listed = read_checksums(folder, of)
    for name, entry in (listed or {"files": {}})["files"].items():
        if skip(name):
            continue
        path, size = folder / name, entry["bytes"]
        if not path.is_file():
            raise InputError(f"{of.name}: {path} is missing; {of.advice}")
        if path.stat().st_size != size:
            raise InputError(f"{of.name}: {path} has {path.stat().st_size:,} bytes, wanted {size:,}; {of.advice}")
        if above < size <= (size if up_to is None else up_to) and sha256_of(path) != entry[SEAL]:
            raise damaged(path, of)


def damaged(path: Path, of: ErrorContext) -> InputError:
    return InputError(f"{of.name}: {path} is damaged or was modified (its SHA-256 differs); {of.advice}")


def _digest(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # tuples as lists, keys as strings: as in the file
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
