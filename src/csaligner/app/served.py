"""The index that is served: opened again when it was rewritten, and unavailable while it cannot be read."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from csaligner.checks import CSAlignerError, InputError
from csaligner.datasets.documents import INDEX_FILE
from csaligner.datasets.images.load import ImageError
from csaligner.search.index import Index
from csaligner.search.manifest import read_manifest

from .handlers import Handlers

if TYPE_CHECKING:
    from .server import ServeSettings

LOG = logging.getLogger("csaligner.app")
UNAVAILABLE = "the index cannot be read at the moment; the log of the server says why"
RETRY = 2.0  # seconds until a damaged index is tried again
# of files that changed below an open index: LanceDB raises RuntimeError, ValueError or OSError
TROUBLE = (OSError, RuntimeError, ValueError)


class UnavailableError(CSAlignerError):
    """The index cannot be read; the message is for the client and names no path."""


class Served:
    """The handlers of an index folder. Thread-safe."""

    def __init__(self, index: Index, settings: ServeSettings) -> None:
        self._settings, self._path = settings, index.path
        self._handlers = Handlers(index, settings)
        self._stamp = _stamp(index)
        self._tried = 0.0  # time of the last attempt to open the index again
        self._failed = False
        self._logged = ""
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._handlers.name

    def load(self) -> None:
        self._handlers.load()

    def call(self, work: Callable[[Handlers], Any]) -> Any:
        """Return work(handlers). Raises UnavailableError if the files of the index cannot be read."""
        handlers = self._current()
        try:
            return work(handlers)
        except (ImageError, UnavailableError):
            raise
        except InputError as error:
            if not self._names_files(error):
                raise
            raise self._unavailable(error) from None
        except CSAlignerError:
            raise
        except TROUBLE as error:
            raise self._unavailable(error) from None

    def _current(self) -> Handlers:
        """Return the handlers of the index as it is now; while it is being written, of the index before."""
        if not self._failed and _stamp(self._handlers.index) == self._stamp:
            return self._handlers
        with self._lock:
            stamp = _stamp(self._handlers.index)
            if not self._failed and stamp == self._stamp:
                return self._handlers
            if self._failed and time.monotonic() - self._tried < RETRY:
                raise UnavailableError(UNAVAILABLE)
            self._tried = time.monotonic()
            try:
                if not self._failed and read_manifest(self._path).pending:
                    return self._handlers
                self._handlers = self._opened()
            except (CSAlignerError, *TROUBLE) as error:
                raise self._unavailable(error) from None
            self._stamp, self._failed, self._logged = stamp, False, ""
            return self._handlers

    def _opened(self) -> Handlers:
        """Open the index again, with the encoders that are open if they are those of the index."""
        model, consent = self._handlers.index.model, self._handlers.index.consent
        try:
            index = Index.open(self._path, model.open_encoders, trust=consent)
        except InputError:
            index = Index.open(self._path, trust=consent)
        found = Handlers(index, self._settings)
        found.load()
        return found

    def _unavailable(self, error: BaseException) -> UnavailableError:
        self._failed = True
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        if reason != self._logged:  # once, however many clients ask
            self._logged = reason
            LOG.error("csaligner serve: %s: %s", self._path, reason)
        return UnavailableError(UNAVAILABLE)

    def _names_files(self, error: InputError) -> bool:
        text = str(error)
        return text.startswith("index:") or str(self._path) in text


def _stamp(index: Index) -> tuple[int, ...]:
    """Return a value that changes when the index is rewritten; () if it is missing."""
    try:
        found = os.stat(index.path / INDEX_FILE)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
