"""One writer at a time for a folder: a lock of the operating system on a file beside it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .checks import InputError
from .files import disk_trouble

INSIDE = ".lock"  # the lock's name inside a folder whose parent cannot be written to
NAMES = (INSIDE, ".embed.lock")  # lock files that may lie inside a folder; csaligner 0.1 wrote the second one


@contextmanager
def only_writer(folder: Path, argument: str = "out") -> Iterator[None]:
    """Hold `folder`, which need not exist yet, until the end of the block.

    The lock is `.NAME.lock` beside the folder, so that it also guards the folder's creation; the empty file stays. The
    system releases the lock when its process ends, however it ends. argument: begins the message. Raises InputError
    where another process holds the folder, and CSAlignerError where the lock cannot be written.
    """
    path = lock_path(folder)
    lock = FileLock(path, timeout=0)
    try:
        if folder.is_dir() and not os.access(folder, os.W_OK):  # before a lock file is left for nothing
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{argument}: {folder} is being written by another process; wait for it to end, or choose another folder"
        ) from None
    except NotImplementedError:
        raise InputError(f"{argument}: {folder} lies on a file system without file locks; choose another") from None
    except OSError as error:
        known = disk_trouble(error, folder)
        if known is None:
            raise
        raise known from None
    try:
        yield
    finally:
        lock.release()


def lock_path(folder: Path) -> Path:
    """Where the lock of `folder` lies: beside it, or inside where only the folder itself can be written to."""
    folder = folder.resolve()
    if folder.is_dir() and not os.access(folder.parent, os.W_OK):
        return folder / INSIDE
    return folder.with_name(f".{folder.name}.lock") if folder.name else folder / INSIDE
