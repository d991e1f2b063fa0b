"""Atomic writing of files and folders: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .checks import CSAlignerError

FULL = (errno.ENOSPC, errno.EDQUOT)
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
REPLACED = ".replaced"
CHECKSUMS = "checksums.json"
UNIQUE = "[0-9a-f]" * 8  # pattern of the random part of a temporary name


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path in the same folder, then rename it to `path`; remove it on errors.

    Raises CSAlignerError if the disk is full or not writable.
    """
    temporary = _temporary(path)
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        _remove(temporary)
        known = disk_trouble(error, path)
        if known is None:
            raise
        raise known from None


def disk_trouble(error: BaseException, path: Path | str, what: str = "written") -> CSAlignerError | None:
    """Convert errors of a full disk or missing permissions to a one-line CSAlignerError; other errors: None. what:
    past participle of the attempted operation."""
    if isinstance(error, CSAlignerError) or not isinstance(error, Exception):
        return None
    number, text = getattr(error, "errno", None), str(error)
    if number is None:  # Rust and C++ libraries give only the text
        number = next((n for n in (*FULL, *CLOSED) if os.strerror(n) in text), None)
    if number in FULL:
        return CSAlignerError(f"disk full: {path} could not be written; free some space and run the same command again")
    if number in CLOSED:
        how = "written" if number == errno.EROFS else what
        return CSAlignerError(
            f"{path} cannot be {how} ({os.strerror(number)}); change its permissions, or use another path"
        )
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Write a folder atomically; an existing writable folder is replaced.

    If the process is killed, `recover_folder` removes the temporary folder, or restores the old one.
    """
    temporary, old = _temporary(path), _old(path)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        _restore(path)
        if path.exists():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            os.replace(path, old)
        os.replace(temporary, path)
        _remove(old)
    except BaseException as error:
        _remove(temporary)
        _restore(path)
        known = disk_trouble(error, path)
        if known is None:
            raise
        raise known from None


def recover_folder(path: Path) -> None:
    """Clean up after a killed write_folder(path, ...): remove its temporary folders, and restore the old folder, or
    remove it if the new one exists. No other process may be writing to `path`."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.{UNIQUE}.tmp"):
        _remove(temporary)
    _restore(path)


def _restore(path: Path) -> None:
    old = _old(path)
    if not old.is_dir():
        return
    if path.exists():
        _remove(old)
    else:
        os.replace(old, path)


def recover(folder: Path) -> None:
    """Remove leftovers of killed writers directly in `folder`; no other process may be writing to it."""
    for path in folder.glob(f".*.{UNIQUE}.tmp"):
        _remove(path)
    for path in folder.glob(f".*{REPLACED}"):
        _restore(folder / path.name.removeprefix(".").removesuffix(REPLACED))


def move_up(folder: Path) -> None:
    """Move the contents of `folder` to its parent and remove it."""
    for path in folder.iterdir():
        path.rename(folder.parent / path.name)
    folder.rmdir()


def point(link: Path, target: str) -> None:
    """Make `link` a symbolic link to its sibling `target`, atomically."""

    def make(temporary: Path) -> None:
        temporary.symlink_to(target)

    write_atomically(link, make)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:  # \udce9 is an escape of JSON, too
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}{REPLACED}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
