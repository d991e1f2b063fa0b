"""Paths and URLs: which is which, and where only a path is possible. remote.py reads and writes what is at a URL."""

from __future__ import annotations

import re
from pathlib import Path

from .checks import InputError

SCHEME = r"[A-Za-z][A-Za-z0-9+.-]+"  # two characters or more: one is the letter of a drive
URL, ONE_SLASH = re.compile(f"{SCHEME}://"), re.compile(rf"{SCHEME}:[\\/]")


def is_url(path: object) -> bool:
    """Return whether this is a URL, such as s3://bucket/name. Raises InputError for one with a single slash."""
    if not isinstance(path, str) or ONE_SLASH.match(path) is None:
        return False
    if URL.match(path) is None:
        raise InputError(f"{path}: neither a path nor a URL; did you mean {_with_two_slashes(path)}?")
    return True


def address(source: Path | str) -> str:
    """Return what identifies a source wherever the program runs: its URL, or its absolute path."""
    return str(source).rstrip("/") if is_url(source) else str(Path(source).resolve())


def require_local(name: str, path: Path | str, *, output: bool = False) -> None:
    """Raise InputError for a URL where only a path on this machine is possible. name: of the option; output: whether it
    is written."""
    if is_url(path) or ONE_SLASH.match(str(path)):  # a Path has one of the two slashes of a URL
        what = "give a path and upload it afterwards" if output else "copy it to this machine first"
        raise InputError(
            f"{name}: got the URL {_with_two_slashes(str(path))}, wanted a path on this machine; {what} "
            "(docs/scale.md lists what is read and written at URLs)"
        )


def _with_two_slashes(path: str) -> str:
    return re.sub(r":[\\/]+", "://", path, count=1)
