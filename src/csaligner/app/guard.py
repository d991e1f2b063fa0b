"""ASGI middleware of the app: host check, password, security headers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ASGIApp = Callable[[Any, Receive, Send], Awaitable[None]]

# no external resources, no inline scripts
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
ASK = (b"www-authenticate", b'Basic realm="csaligner"')
WRONG_SECONDS, WRONG_AT_ONCE = 1.0, 4  # delay of the answer to a wrong password; most such answers of an address
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


class Guard:
    """ASGI middleware that rejects unauthorised and cross-site requests.

    hosts: allowed host names, None: any. On the loopback address only loopback names are allowed, which prevents DNS
    rebinding; own: names under which a proxy serves the app, which may also be the origin of a request. password: for
    HTTP basic authentication with any user name. root: path below which a proxy serves the app, "" or "/search".
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        password: str | None = None,
        hosts: Collection[str] | None = None,
        own: Collection[str] = (),
        root: str = "",
    ) -> None:
        self._app, self._password, self._root = app, password, root
        self._own = frozenset(map(str.lower, own))
        self._hosts = None if hosts is None else self._own.union(hosts)
        self._wrong = Counter[str]()  # answers to wrong passwords that wait, by address

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refuse = partial(_refuse, send, is_api(scope["path"], self._root))
        if self._hosts is not None and host_name(headers.get(b"host", b"").decode("latin-1")) not in self._hosts:
            await refuse(421, "host name not allowed; allow it with csaligner serve --allow-host NAME")
        elif self._password is not None and not (given := headers.get(b"authorization", b"")):
            await refuse(401, "password required", ASK)
        elif self._password is not None and self._wrong[address := _address(scope)] >= WRONG_AT_ONCE:
            await refuse(429, "too many wrong passwords; try again soon", (b"retry-after", b"2"))
        elif self._password is not None and not _authorised(given, self._password):
            await self._slow_down(address)
            await refuse(401, "password required", ASK)
        elif scope["method"] not in ("GET", "HEAD") and not _same_origin(headers, self._own):
            await refuse(403, "cross-site request rejected")
        else:
            await self._pass_on(scope, receive, _with_headers(send))

    async def _slow_down(self, address: str) -> None:
        """Wait before a wrong password is answered; an address gets WRONG_AT_ONCE answers in WRONG_SECONDS."""
        self._wrong[address] += 1
        try:
            await asyncio.sleep(WRONG_SECONDS)
        finally:
            self._wrong[address] -= 1
            self._wrong += Counter()  # without zeros

    async def _pass_on(self, scope: Any, receive: Receive, send: Send) -> None:
        """Call the app, which accepts paths with and without the root."""
        if self._root and scope["path"] == self._root:  # the page's links are relative to its folder
            where = [(b"location", f"{self._root}/".encode())]
            await send({"type": "http.response.start", "status": 307, "headers": where})
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._app({**scope, "root_path": self._root}, receive, send)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_name(value: str) -> str:
    """Return the value of a Host header without its port, in lower case."""
    address = re.fullmatch(r"(\[[0-9a-fA-F:.]+\])(:\d*)?", value)
    return (address[1] if address else value.partition(":")[0]).lower()


def _same_origin(headers: Mapping[bytes, bytes], own: Collection[str]) -> bool:
    """Return whether the request comes from the app's own page or from no page. own: names of the app at a proxy."""
    origin = headers.get(b"origin", b"").partition(b"://")[2]
    known = (
        not headers.get(b"origin") or origin == headers.get(b"host", b"") or host_name(origin.decode("latin-1")) in own
    )
    return known and headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")


def _authorised(header: bytes, password: str) -> bool:
    scheme, _, encoded = header.partition(b" ")
    try:
        given = base64.b64decode(encoded, validate=True).partition(b":")[2]
    except binascii.Error:
        return False
    return scheme.lower() == b"basic" and hmac.compare_digest(given, password.encode())


def _address(scope: Scope) -> str:
    """Return the address of the client; all clients of a proxy have one."""
    return str((scope.get("client") or ("",))[0])


def is_api(path: str, root: str) -> bool:
    """Return whether a path, with or without the root, belongs to the JSON API."""
    return path.removeprefix(root).split("/")[1:2] == ["api"]


async def _refuse(send: Send, api: bool, status: int, words: str, *more: tuple[bytes, bytes]) -> None:
    kind, body = (b"application/json", json.dumps({"error": words})) if api else (b"text/plain; charset=utf-8", words)
    headers = [(b"content-type", kind), *more]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return wrapped
