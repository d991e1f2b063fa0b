"""Exclusive write access to a folder, by an operating system lock on a file next to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .checks import InputError
from .files import disk_trouble

INSIDE = ".lock"  # name of the lock inside a folder whose parent is not writable
NAMES = (INSIDE, ".embed.lock")  # lock files inside a folder; the second is that of csaligner 0.1


@contextmanager
def only_writer(folder: Path, argument: str = "out") -> Iterator[None]:
    """Lock `folder`, which may not exist yet, until the end of the block.

    The lock is `.NAME.lock` next to the folder, so that it also protects the folder's creation; the empty file is not
    deleted. The system releases the lock when the process ends. argument: first word of the message. Raises InputError
    if another process holds the lock or a link stands in the folder, and CSAlignerError if the lock file cannot be
    written.
    """
    path = lock_path(folder)
    lock = FileLock(path, timeout=0)
    try:
        if folder.is_dir() and not os.access(folder, os.W_OK):  # before creating a lock file
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        if path.is_symlink() or (path.exists() and not path.is_file()):  # opening it would empty its target, or wait
            raise InputError(f"{argument}: the lock {path} is not a file; delete it")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{argument}: {folder} is being written by another process; wait until it ends, or choose another folder"
        ) from None
    except NotImplementedError:
        raise InputError(
            f"{argument}: {folder} is on a file system without file locks; choose another folder"
        ) from None
    except OSError as error:
        known = disk_trouble(error, folder)
        if known is None:
            raise
        raise known from None
    try:
        refuse_links(folder, argument)
        yield
    finally:
        lock.release()


def refuse_links(folder: Path, argument: str = "out") -> None:
    """Raise InputError if a link stands directly in `folder`: what is written must stay in the folder named."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_symlink():
            raise InputError(
                f"{argument}: {folder} contains the link {path.name}, through which nothing is written; "
                "replace it by what it points to"
            )


def lock_path(folder: Path) -> Path:
    """Return the path of the lock: next to `folder`, or inside if the parent is not writable."""
    folder = folder.resolve()
    if folder.is_dir() and not os.access(folder.parent, os.W_OK):
        return folder / INSIDE
    return folder.with_name(f".{folder.name}.lock") if folder.name else folder / INSIDE
