"""Folders of transformers models: local, or a snapshot of one commit of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.extras import install_command
from csaligner.files import sha256_of
from csaligner.parsing import parse_json

WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")  # no pickle, no code
UNWANTED = ("onnx/*", "openvino/*", "original/*", "*/onnx/*", "coreml/*")
NOT_THE_MODEL = ("trainer_state.json",)  # training metadata, not part of the revision
_FORBIDDEN: ContextVar[str] = ContextVar("no_downloads", default="")


@dataclass(frozen=True)
class ModelFolder:
    """path: a folder with config.json and *.safetensors; base: the name without options; revision: the commit on
    the Hub, or the first 16 digits of a SHA-256 over the files of a local folder; config: parsed config.json."""

    path: Path
    base: str
    revision: str
    config: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def two_towers(self) -> bool:
        """Whether the folder contains an image and a text tower."""
        return "text_config" in self.config and "vision_config" in self.config


@contextmanager
def no_downloads(whose: str) -> Iterator[None]:
    """Let encoders that are not on this machine raise InputError in the block. whose: who names them, for messages."""
    token = _FORBIDDEN.set(whose)
    try:
        yield
    finally:
        _FORBIDDEN.reset(token)


def check_downloads(encoder: str) -> None:
    """Raise InputError within `no_downloads`."""
    whose = _FORBIDDEN.get()
    if whose:
        raise InputError(
            f"encoder: {whose} was not made by this user on this machine, and its encoder {encoder} would be "
            "downloaded; give --trust (in Python trust=True) if you trust who made it"
        )


def open_folder(source: str, revision: str | None = None) -> ModelFolder:
    """Open a local folder, or a Hub repository (downloaded once, then read from the cache without a network).

    Raises InputError for a missing folder or repository, no network, no config.json, or no weights in safetensors
    format.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(
                f"encoder: revision={revision}: {source} is a local folder without revisions; remove the option"
            )
        path = path.resolve()
        config = _config(path, source)
        return ModelFolder(path, f"hf:{path}", _content_hash(path), config)
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or not source:
        raise InputError(f"encoder: no such folder: {source}")
    snapshot = _snapshot(source, revision)
    return ModelFolder(snapshot, f"hf:{source}", snapshot.name, _config(snapshot, source))


def _snapshot(name: str, revision: str | None) -> Path:
    """Return the folder of a repository in the cache, downloaded if it is not there or not complete."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"encoder: huggingface_hub is not installed; {install_command('hf')}") from None
    try:
        cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if _is_complete(cached):
            return cached
    except Exception:  # many types: not in the cache, not a name
        pass
    check_downloads(f"hf:{name}")
    wanted, unwanted = list(WANTED), list(UNWANTED)
    try:
        found = Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except Exception as error:  # many types: no network, unknown name, private repository
        at = f" at revision {revision!r}" if revision else ""
        which = f" --revision {revision}" if revision else ""
        raise InputError(
            f"encoder: {name!r}{at} is not in the local cache and could not be downloaded ({_reason(error)}); "
            f"check the name, run `hf download {name}{which}` with a network, or give the path of its folder"
        ) from None
    if not _is_complete(found):
        raise InputError(
            f"encoder: {name!r} in the local cache has no configuration or no complete weights in safetensors format; "
            f"run `hf download {name}` with a network to complete it, or choose a model that has them"
        )
    return found


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot has a configuration and all its weights."""
    config = (folder / "config.json").is_file() or (folder / "modules.json").is_file()
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return config and any(folder.rglob("*.safetensors"))
    try:
        shards = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return config and all((folder / str(shard)).is_file() for shard in shards)


def _reason(error: Exception) -> str:
    """Return a short reason for a failed download."""
    words = " ".join(str(error).split())
    if "LocalEntryNotFound" in type(error).__name__ or isinstance(error, ConnectionError | OSError):
        known = re.search(r"\b(401|403|404)\b", words)
        return "no network" if known is None else f"the Hub answers {known[0]}: unknown or private"
    return words[:200]


def _config(path: Path, source: str) -> Mapping[str, Any]:
    file = path / "config.json"
    if not file.is_file() and not (path / "modules.json").is_file():
        raise InputError(f"encoder: {source} contains no config.json; give a folder written by save_pretrained")
    if not any(path.rglob("*.safetensors")):
        others = sorted(p.name for p in path.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        found = f" (only {others[0]}, which may contain code)" if others else ""
        raise InputError(f"encoder: {source} contains no weights in safetensors format{found}; save the model again")
    if not file.is_file():
        return {}
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"encoder: {file} is not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"encoder: {file} is not a model configuration (wanted a JSON object)")
    return config


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    files = {f for pattern in WANTED for f in path.rglob(pattern)}
    for file in sorted(files):
        name = file.relative_to(path).as_posix()
        if not name.startswith(".") and name not in NOT_THE_MODEL:
            digest.update(f"{name}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()[:16]
