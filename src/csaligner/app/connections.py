"""Sockets of the server; protocol.py limits the connections and has their deadlines."""

from __future__ import annotations

import socket
from typing import Any

from csaligner.checks import InputError

BACKLOG, AT_ONCE = 256, 8  # pending connections; those that are accepted before the next one is counted


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises InputError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only for sockets made with IPPROTO_TCP; without it, small answers wait 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)  # accept connections before the URL is reported
    except OSError as error:
        listener.close()
        raise InputError(f"serve: cannot listen on {host}:{port} ({error.strerror}); try another --port") from None
    return listener


def run(app: Any, listener: socket.socket) -> None:
    """Run uvicorn on a listening socket until it is interrupted."""
    import uvicorn

    from .protocol import LimitedProtocol

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            listener.listen(BACKLOG)  # asyncio accepts as many connections at once as it was told to let wait

    config = uvicorn.Config(
        app, http=LimitedProtocol, ws="none", backlog=AT_ONCE, log_level="error", access_log=False, lifespan="off"
    )
    Server(config).run(sockets=[listener])
