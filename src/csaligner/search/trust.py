"""Marks of indexes that this user made on this machine.

An index names files of the machine, whose images `serve` shows, and encoders, which may be downloaded. One from
elsewhere must not choose them without consent. So index.json contains a code that only the owner of a secret can make:
HMAC-SHA256 over the encoders and the aligner, with a key in the user's state folder.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from csaligner.types import EncoderInfo

KEY_BYTES = 32


def mark_of(fingerprint: str, image: EncoderInfo, text: EncoderInfo) -> str:
    """Return the mark of an index with this aligner and these encoders; "" if no key can be kept."""
    key = _key()
    content = "\n".join(("csaligner index", fingerprint, image.fingerprint, text.fingerprint))
    return "" if key is None else hmac.new(key, content.encode(), hashlib.sha256).hexdigest()


def is_own(mark: str, fingerprint: str, image: EncoderInfo, text: EncoderInfo) -> bool:
    """Return whether a mark was made with the key of this user."""
    own = mark_of(fingerprint, image, text)
    return bool(own) and hmac.compare_digest(own.encode(), mark.encode())


def _key() -> bytes | None:
    """Return the key, made on first use; None if it can be neither read nor written."""
    with suppress(OSError, RuntimeError):  # RuntimeError: no home folder
        path = _folder() / "index.key"
        if not path.is_file():
            _make_key(path)
        key = path.read_bytes()
        return key if len(key) == KEY_BYTES else None
    return None


def _folder() -> Path:
    """Return the folder of the program's state, $XDG_STATE_HOME/csaligner or ~/.local/state/csaligner."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return Path(state if os.path.isabs(state) else Path.home() / ".local" / "state", "csaligner")


def _make_key(path: Path) -> None:
    """Write a key, complete or not at all, that only the user can read; another process may do so at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
