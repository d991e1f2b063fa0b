"""Web server of the search page: JSON API over an index, thumbnails, uploads; no access to other hosts."""

from __future__ import annotations

import asyncio
import io
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from PIL import Image

from csaligner.checks import CSAlignerError, InputError, check_choice
from csaligner.datasets.images.load import ImageError
from csaligner.extras import install_command
from csaligner.search.index import Hit, Index, SearchOptions
from csaligner.search.lance_table import Row

from .collection import collection_map
from .guard import LOOPBACK_NAMES, ASGIApp, Guard, is_loopback
from .pictures import MAX_UPLOAD, SIZES, read_upload, thumbnail

MOST_HITS, MOST_WORDS = 60, 2000
AT_ONCE = 4  # uploads decoded concurrently; each may need 200 MB
PATIENCE = 30.0  # timeout of an upload in seconds
BACKLOG = 256  # pending connections
STATIC: Mapping[str, str] = {
    "index.html": "text/html; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
Generator = Callable[[str, int], Image.Image]  # prompt, seed -> generated image


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


class _App:
    """Handlers of the API routes, run in a thread pool."""

    def __init__(self, index: Index, settings: ServeSettings) -> None:
        self.index, self.settings = index, settings
        self._warming = threading.Event()
        self._decoding = threading.Semaphore(AT_ONCE)
        self.map = lru_cache(None)(lambda space: [list(asdict(p).values()) for p in collection_map(index, space)])

    def about(self, _: Any) -> dict[str, Any]:
        return {
            "name": self.settings.name or self.index.path.resolve().name,
            "counts": self.index.counts,
            "spaces": self.index.spaces,
            "bias": self.index.bias,
            "generate": self.settings.generate is not None,
            "max_upload": MAX_UPLOAD,
        }

    def search(self, request: Any) -> dict[str, Any]:
        words = request.query_params.get("q", "")
        if len(words) > MOST_WORDS:
            raise InputError(f"the query has {len(words)} characters; the limit is {MOST_WORDS}")
        return self._answer(request, words)

    def search_picture(self, request: Any, body: bytes) -> dict[str, Any]:
        with self._decoding:
            picture = read_upload(body, self.index.model.image_size)
        return self._answer(request, picture)

    def like(self, request: Any) -> dict[str, Any]:
        """Search with an item of the index as the query."""
        row = self._row(request)
        if row.modality == "text":
            return self._answer(request, row.text)
        return self._answer(request, read_upload(thumbnail(row, SIZES[-1]), self.index.model.image_size))

    def item(self, request: Any) -> dict[str, Any]:
        row = self._row(request)
        return {
            "id": row.id,
            "modality": row.modality,
            "text": row.text,
            "caption": row.caption,
            "owner": row.owner,
            "picture": _has_picture(row),
        }

    def points(self, request: Any) -> dict[str, Any]:
        space = request.query_params.get("space", "aligned")
        check_choice("space", space, self.index.spaces)
        found = {"points": self.map(space)}
        self._warm()
        return found

    def _warm(self) -> None:
        """Load encoders in the background after the map is sent, so that the first query is fast."""
        if not self._warming.is_set():
            self._warming.set()
            threading.Thread(target=self.index.warm, daemon=True).start()

    def generate(self, request: Any) -> bytes:
        if self.settings.generate is None:
            raise InputError("no decoder is loaded; start with --decoder")
        words = request.query_params.get("q", "").strip()[:MOST_WORDS]
        if not words:
            raise InputError("the prompt is empty; enter a text")
        buffer = io.BytesIO()
        self.settings.generate(words, _number(request, "seed", 0, 2**31 - 1)).save(buffer, "PNG")
        return buffer.getvalue()

    def thumb(self, request: Any) -> bytes:
        size = _number(request, "size", SIZES[0], SIZES[-1])
        return thumbnail(self._row(request), next(s for s in SIZES if s >= size))

    def _answer(self, request: Any, query: str | Image.Image) -> dict[str, Any]:
        started = time.perf_counter()
        params = request.query_params
        options = SearchOptions(only=params.get("only") or None, space=params.get("space", "aligned"))
        hits = self.index.search(query, max(1, _number(request, "k", 20, MOST_HITS)), options)
        return {"hits": [_for_page(hit) for hit in hits], "seconds": time.perf_counter() - started}

    def _row(self, request: Any) -> Row:
        row = self.index.row(request.query_params.get("id", ""))
        if row is None:
            raise ImageError("the index has no item with this id")
        return row


def make_app(index: Index, settings: ServeSettings | None = None) -> ASGIApp:
    """Return the ASGI app. Raises InputError if starlette is not installed."""
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise InputError(f"serve: needs starlette and uvicorn; {install_command('app')}") from None
    settings = settings or ServeSettings()
    app = _App(index, settings)

    def failed(error: CSAlignerError) -> Any:
        return JSONResponse({"error": str(error)}, status_code=404 if isinstance(error, ImageError) else 400)

    def answers(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        async def route(request: Any) -> Any:
            try:
                found = await run_in_threadpool(work, request)
            except CSAlignerError as error:
                return failed(error)
            if isinstance(found, bytes):
                kind = "image/png" if found.startswith(b"\x89PNG") else "image/jpeg"
                return Response(found, media_type=kind, headers={"cache-control": "private, max-age=600"})
            return JSONResponse(found)

        return route

    async def upload(request: Any) -> Any:
        try:
            body = await asyncio.wait_for(_body(request), PATIENCE)
        except (TimeoutError, asyncio.TimeoutError):  # different classes before Python 3.11
            words = f"the upload took longer than {PATIENCE:.0f} seconds"
            return JSONResponse({"error": words}, status_code=408, headers={"connection": "close"})
        if body is None:
            words = f"the file is larger than the limit of {MAX_UPLOAD // 1_000_000} MB"
            return JSONResponse({"error": words}, status_code=413, headers={"connection": "close"})
        return await answers(lambda r: app.search_picture(r, body))(request)

    def static(name: str) -> Callable[[Any], Any]:
        content = resources.files("csaligner.app").joinpath("static", name).read_bytes()
        return lambda _: Response(content, media_type=STATIC[name], headers={"cache-control": "no-cache"})

    routes = [Route("/" if name == "index.html" else f"/{name}", static(name)) for name in STATIC]
    gets = {"about": app.about, "search": app.search, "like": app.like, "item": app.item, "map": app.points}
    gets |= {"thumb": app.thumb}  # type: ignore[dict-item]  # bytes
    routes += [Route(f"/api/{name}", answers(work)) for name, work in gets.items()]
    routes.append(Route("/api/picture", upload, methods=["POST"]))
    routes.append(Route("/api/generate", answers(app.generate), methods=["POST"]))
    hosts = LOOPBACK_NAMES if is_loopback(settings.host) or settings.allow_hosts else None
    own, root = settings.allow_hosts, settings.root_path
    return Guard(Starlette(routes=routes), password=settings.password, hosts=hosts, own=own, root=root)


def serve(index: Index, settings: ServeSettings, ready: Callable[[str], object] = print) -> None:
    """Serve until interrupted. ready: called with the URL once the server accepts connections.

    Raises InputError if the address cannot be used.
    """
    import socket

    app = make_app(index, settings)
    import uvicorn

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
        listener.listen(BACKLOG)  # accept connections before the URL is reported
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        raise InputError(f"serve: cannot listen on {where} ({error.strerror}); try another --port") from None
    with listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready(f"http://{host}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(app, backlog=BACKLOG, log_level="warning", access_log=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


async def _body(request: Any) -> bytes | None:
    """Return the body, or None if it is too large."""
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > MAX_UPLOAD:
        return None
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_UPLOAD:
            return None
        parts.append(chunk)
    return b"".join(parts)


def _for_page(hit: Hit) -> dict[str, Any]:
    """Return the fields for the page, without local paths."""
    return {
        "id": hit.id,
        "modality": hit.modality,
        "score": round(hit.score, 4),
        "cosine": round(hit.cosine, 4),
        "text": hit.text,
        "caption": hit.caption,
        "owner": hit.owner,
        "missing": hit.missing,
        "picture": _has_picture(hit),
    }


def _has_picture(item: Row | Hit) -> bool:
    """Return whether the item has a thumbnail: images, and captions of indexed images."""
    return item.modality == "image" or bool(item.owner)


def _number(request: Any, name: str, default: int, most: int) -> int:
    value = request.query_params.get(name, str(default))
    if not (value.isascii() and value.isdecimal()) or int(value[:12]) > most:
        raise InputError(f"{name}: got {value[:40]!r}, wanted a whole number up to {most}")
    return int(value)
