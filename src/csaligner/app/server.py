"""Web server of the search page: JSON API over an index, images, uploads; no access to other hosts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import quote

from csaligner.checks import CSAlignerError, InputError
from csaligner.datasets.images.load import ImageError
from csaligner.extras import install_command
from csaligner.search.index import Index

from .connections import listen, run
from .guard import LOOPBACK_NAMES, ASGIApp, Guard, is_api, is_loopback
from .handlers import Generator, Handlers
from .openapi import api_page, openapi, search_page
from .pictures import MAX_UPLOAD, Original
from .served import Served, UnavailableError

PATIENCE = 30.0  # timeout of an upload in seconds
AT_ONCE = 2  # uploads decoded and encoded concurrently; each may need 320 MB
MOST_BODIES, MOST_BYTES = 64, 64_000_000  # uploads in memory
STATIC: Mapping[str, str] = {
    "app.css": "text/css; charset=utf-8",
    "map.js": "text/javascript; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
HTML = "text/html; charset=utf-8"
CHUNK = 1 << 18  # bytes
SOON = {"retry-after": "2"}
CACHE = {"cache-control": "private, max-age=600"}


@dataclass(frozen=True)
class ServeSettings:
    """host, port: address to listen on (port 0: any free port); password: None for no password; generate: image
    generator, None without a decoder; name: title of the page; allow_hosts: further host names, under which a proxy
    serves the page; root_path: path below which it does, for example /search."""

    host: str = "127.0.0.1"
    port: int = 7860
    password: str | None = None
    generate: Generator | None = None
    name: str = ""
    allow_hosts: tuple[str, ...] = ()
    root_path: str = ""

    def __post_init__(self) -> None:
        for host in self.allow_hosts:
            if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", host):
                raise InputError(f"allow_host: got {host!r}, wanted a host name without scheme and port")
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", self.root_path):
            raise InputError(f"root_path: got {self.root_path!r}, wanted a path such as /search, without / at its end")

    @property
    def is_open(self) -> bool:
        """Whether other machines can access the page without a password."""
        return (bool(self.allow_hosts) or not is_loopback(self.host)) and not self.password


def make_app(index: Index, settings: ServeSettings | None = None) -> ASGIApp:
    """Return the ASGI app. Raises InputError if starlette is not installed."""
    settings = settings or ServeSettings()
    return _app_of(Served(index, settings), settings)


def _app_of(app: Served, settings: ServeSettings) -> ASGIApp:
    try:
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise InputError(f"serve: needs starlette and uvicorn; {install_command('app')}") from None

    def fixed(content: bytes | str, kind: str) -> Callable[[Any], Any]:
        return lambda _: Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    pages = {f"/{name}": fixed(_static(name), kind) for name, kind in STATIC.items()}
    pages |= {"/": fixed(search_page(app.name), HTML), "/api.html": fixed(api_page(), HTML)}
    pages["/openapi.json"] = lambda _: JSONResponse(openapi())
    gets: Mapping[str, Callable[[Handlers, Any], Any]] = {
        **{"about": Handlers.about, "status": Handlers.status, "search": Handlers.search, "similar": Handlers.similar},
        **{"item": Handlers.item, "map": Handlers.points, "thumb": Handlers.thumb, "original": Handlers.original},
    }
    routes = [Route(path, page) for path, page in pages.items()]
    routes += [Route(f"/api/{name}", _answers(app, work)) for name, work in gets.items()]
    routes.append(Route("/api/search/image", _upload(app), methods=["POST"]))
    routes.append(Route("/api/generate", _answers(app, Handlers.generate), methods=["POST"]))
    hosts = LOOPBACK_NAMES if is_loopback(settings.host) or settings.allow_hosts else None
    own, root = settings.allow_hosts, settings.root_path
    made = Starlette(routes=routes, exception_handlers=dict.fromkeys((404, 405), _no_route(root)))
    return Guard(made, password=settings.password, hosts=hosts, own=own, root=root)


def _no_route(root: str) -> Callable[[Any, Any], Any]:
    """Return the handler of requests without a route: JSON for the API, plain text for pages. root: as in Guard."""
    from starlette.responses import JSONResponse, PlainTextResponse

    def answer(request: Any, error: Any) -> Any:
        if not is_api(request.scope["path"], root):
            return PlainTextResponse(error.detail, error.status_code, headers=error.headers)
        words = "the API has no such route; api.html lists its routes"
        if error.status_code == 405:
            words = f"{request.method} is not a method of this route; use {error.headers['Allow']}"
        return JSONResponse({"error": words}, error.status_code, headers=error.headers)

    return answer


def _answers(app: Served, work: Callable[[Handlers, Any], Any]) -> Callable[[Any], Any]:
    """Return a route that runs a handler in the thread pool."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response, StreamingResponse

    async def route(request: Any) -> Any:
        try:
            found = await run_in_threadpool(app.call, lambda handlers: work(handlers, request))
        except UnavailableError as error:
            return JSONResponse({"error": str(error)}, status_code=503, headers=SOON)
        except CSAlignerError as error:
            return JSONResponse({"error": str(error)}, status_code=404 if isinstance(error, ImageError) else 400)
        if isinstance(found, Original):
            headers = _original_headers(found, save=request.query_params.get("download", "0") != "0")
            return StreamingResponse(_chunks(found), headers=headers)
        if isinstance(found, bytes):
            kind = "image/png" if found.startswith(b"\x89PNG") else "image/jpeg"
            return Response(found, media_type=kind, headers=CACHE)
        return JSONResponse(found)

    return route


def _upload(app: Served) -> Callable[[Any], Any]:
    """Return the route of a search by image. The bodies of all requests share a budget; a few are decoded at once."""
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response

    budget, decoding = _Budget(), asyncio.Semaphore(AT_ONCE)

    async def upload(request: Any) -> Any:
        declared = request.headers.get("content-length", str(MAX_UPLOAD))
        if not declared.isdecimal() or int(declared[:12]) > MAX_UPLOAD:
            words = f"the file is larger than the limit of {MAX_UPLOAD // 1_000_000} MB"
            return JSONResponse({"error": words}, status_code=413, headers={"connection": "close"})
        if not budget.take(int(declared)):
            words = "too many images are being uploaded; try again soon"
            return JSONResponse({"error": words}, status_code=503, headers=SOON | {"connection": "close"})
        try:
            body = await asyncio.wait_for(_body(request, int(declared)), PATIENCE)
            if body is None:
                words = f"the file is larger than the limit of {MAX_UPLOAD // 1_000_000} MB"
                return JSONResponse({"error": words}, status_code=413, headers={"connection": "close"})
            async with decoding:  # until it is encoded: an image in full size is in memory
                return await _answers(app, lambda handlers, r: handlers.search_image(r, body))(request)
        except (TimeoutError, asyncio.TimeoutError):  # different classes before Python 3.11
            words = f"the upload took longer than {PATIENCE:.0f} seconds"
            return JSONResponse({"error": words}, status_code=408, headers={"connection": "close"})
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        finally:
            budget.give(int(declared))

    return upload


class _Budget:
    """Number and bytes of the uploads that are in memory; used by the event loop only."""

    def __init__(self) -> None:
        self._bodies = self._bytes = 0

    def take(self, size: int) -> bool:
        """Reserve `size` bytes, if there are as many."""
        if self._bodies >= MOST_BODIES or self._bytes + size > MOST_BYTES:
            return False
        self._bodies, self._bytes = self._bodies + 1, self._bytes + size
        return True

    def give(self, size: int) -> None:
        self._bodies, self._bytes = self._bodies - 1, self._bytes - size


def serve(index: Index, settings: ServeSettings, ready: Callable[[str], object] = print) -> None:
    """Serve until interrupted. ready: called with the URL once the server accepts connections.

    Raises InputError if the address cannot be used.
    """
    served = Served(index, settings)
    app = _app_of(served, settings)
    listener = listen(settings.host, settings.port)
    served.load()
    with listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready(f"http://{host}:{listener.getsockname()[1]}/")
        run(app, listener)


async def _body(request: Any, most: int) -> bytes | None:
    """Return the body, or None if it has more than `most` bytes."""
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            return None
        parts.append(chunk)
    return b"".join(parts)


def _static(name: str) -> bytes:
    return resources.files("csaligner.app").joinpath("static", name).read_bytes()


def _original_headers(found: Original, *, save: bool) -> dict[str, str]:
    """Return the headers of an original; only types in SHOWN may be displayed by the browser."""
    how = "inline" if found.media and not save else "attachment"
    return CACHE | {
        "content-type": found.media or "application/octet-stream",
        "content-length": str(found.size),
        "content-disposition": f"{how}; filename*=UTF-8''{quote(found.name, safe='', errors='replace')}",
    }


def _chunks(found: Original) -> Iterator[bytes]:
    with found.file as file:
        while part := file.read(CHUNK):
            yield part
