"""What a long command has done so far, kept until all is done, so that the same call goes on after an interruption."""

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
UNFINISHED = "unfinished"  # the folder for it, in the folder of the results
OWNER = ErrorContext("unfinished", "it is done again")


def done_once(
    path: Path, make: Callable[[], T], as_json: Callable[[T], dict[str, Any]], from_json: Callable[[dict[str, Any]], T]
) -> T:
    """make(), kept in the file `path`; read from there where an earlier call has written it and it is not damaged."""
    try:
        return read_sealed(path, OWNER, from_json)
    except InputError:  # not there or damaged
        value = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, as_json(value))
    return value


def task_key(fold: Fold, *settings: Any) -> str:
    """SHA-256 of the version, the fold with all its rows, and settings that JSON can write; 16 hexadecimal digits."""
    wanted = [version("csaligner"), fold.dataset, fold.number, *settings]
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode())
    for part in (*(part for split in fold.splits for part in split), fold.test):
        digest.update(json.dumps([part.text_to_image.tolist(), part.image_ids, part.captions]).encode())
        tokens = (part.tokens.image.states, part.tokens.text.states) if part.tokens else ()
        for x in (part.image, part.text, *tokens):
            digest.update(x.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
