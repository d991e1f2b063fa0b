"""The HTTP protocol of the server: uvicorn's, with a limited number of connections and with deadlines.

Imported with the first server, since uvicorn takes a while to load.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 256  # connections, where the system allows as many files
RESERVED = 64  # files of the index, the thumbnails and the drawing processes
HEADERS = 10.0  # seconds for the headers of a request, and between two requests of a connection
STALLED = 30.0  # seconds for which a client may read nothing of an answer
WORDS = b"too many connections; try again soon"
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 2\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(WORDS), WORDS)
)


def most_connections() -> int:
    """Return the number of connections that the limit of open files allows, half of the files that are left."""
    try:
        import resource
    except ImportError:  # Windows
        return MOST
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else max(8, min(MOST, (soft - RESERVED) // 2))


class LimitedProtocol(H11Protocol):  # type: ignore[misc]
    """A connection without a complete request is closed after HEADERS seconds, or as the oldest of too many."""

    _waiting: dict[Any, None] = {}  # noqa: RUF012  (connections of the process without a request, oldest first)
    _deadline: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                transport.write(BUSY)
                transport.close()
                return
            oldest.abort()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and not self.cycle.response_complete:
            self._stop()

    def on_response_complete(self) -> None:
        self._stop()
        self._wait()
        super().on_response_complete()
        if not self.cycle.response_complete:  # the next request was there already
            self._stop()

    def pause_writing(self) -> None:
        self._stop()
        self._deadline = self.loop.call_later(STALLED, self.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stop()
        super().resume_writing()

    def abort(self) -> None:
        self._stop()
        self.transport.abort()

    def _wait(self) -> None:
        self._waiting[self] = None
        self._deadline = self.loop.call_later(HEADERS, self._give_up)

    def _give_up(self) -> None:
        if self.transport.get_write_buffer_size():  # the client still reads the last answer
            self._deadline = self.loop.call_later(STALLED, self.abort)
        else:
            self.abort()

    def _stop(self) -> None:
        self._waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
