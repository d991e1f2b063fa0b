"""Cache of finished tasks, which lets an interrupted comparison or sweep resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from csaligner.checks import InputError
from csaligner.integrity import ErrorContext, read_sealed, write_sealed

from .folds import Fold

T = TypeVar("T")
UNFINISHED = "unfinished"  # subfolder of the results folder
OWNER = ErrorContext("unfinished", "it is computed again")


def done_once(
    path: Path, make: Callable[[], T], as_json: Callable[[T], dict[str, Any]], from_json: Callable[[dict[str, Any]], T]
) -> T:
    """Return make(), cached in the file `path`; a missing or damaged file is computed again."""
    try:
        return read_sealed(path, OWNER, from_json)
    except InputError:  # missing or damaged
        value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, as_json(value))
    return value


def task_key(fold: Fold, *settings: Any) -> str:
    """Return 16 hex digits of a SHA-256 over the version, the fold with all its rows, and JSON settings."""
    wanted = [version("csaligner"), fold.dataset, fold.number, *settings]
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode())
    for part in (*(part for split in fold.splits for part in split), fold.test):
        digest.update(json.dumps([part.text_to_image.tolist(), part.image_ids, part.captions]).encode())
        tokens = tuple(t.loaded().states for t in (part.tokens.image, part.tokens.text)) if part.tokens else ()
        for x in (part.image, part.text, *tokens):
            digest.update(x.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
