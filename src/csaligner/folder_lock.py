"""One writer a folder: a lock file that says who writes, and that a dead writer does not leave behind for ever."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .checks import InputError

LOCK = ".embed.lock"


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold `folder`, which must exist; InputError, with the other's pid and host, where another process does.

    The system drops a lock when its process ends, however it ends, so the lock of a killed process is taken over.
    A lock file from another host cannot be judged from here: it is refused.
    """
    path = folder / LOCK
    file = _locked(path)
    try:
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock goes with the file
        file.close()


def _locked(path: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            free = _try_lock(file)
            owner = _owner(file)
            if not free or owner.get("host", socket.gethostname()) != socket.gethostname():
                raise InputError(
                    f"out: {path.parent} is being written by process {owner.get('pid', '?')} on "
                    f"{owner.get('host', '?')}; wait for it, or delete {path} if that process is gone"
                )
            # a lock on a file that was deleted meanwhile guards nothing
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _try_lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows refuses to delete an open file, which guards enough
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _owner(file: IO[str]) -> dict[str, str]:
    file.seek(0)
    try:
        value = json.load(file)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
