"""Malicious clients of the search server: path traversal, cross-site requests, resource exhaustion."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csaligner.app import handlers, server
from csaligner.app.server import ServeSettings, make_app
from csaligner.search.build import build_index
from csaligner.search.index import Index
from tests.support.colours import ColourImages, ColourTexts, save_aligner

pytest.importorskip("starlette", reason="starlette is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("web")
    (root / "data").mkdir()
    (root / "outside").mkdir()
    for n in range(4):
        Image.new("RGB", (20, 12), (60 * n, 9, 9)).save(root / "data" / f"{n}.png")
        (root / "data" / f"{n}.txt").write_text(f"<script>alert({n})</script>\x1b[31m {60 * n} 9 9", encoding="utf-8")
    Image.new("RGB", (20, 12), (1, 2, 3)).save(root / "outside" / "secret.png")
    os.symlink(root / "outside" / "secret.png", root / "data" / "link.png")
    os.symlink(root / "outside", root / "data" / "folder")
    encoders = (ColourImages(), ColourTexts())
    return build_index(str(root / "data"), root / "index", str(save_aligner(root / "run")), encoders=encoders)[0]


def client_of(index: Index, settings: ServeSettings | None = None) -> Any:
    from starlette.testclient import TestClient

    return TestClient(make_app(index, settings), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def client(index: Index) -> Any:
    return client_of(index)


CLIMBS = (
    *("../outside/secret.png", "..%2foutside%2fsecret.png", "%2e%2e/outside/secret.png", "....//outside/secret.png"),
    *("/etc/passwd", "file:///etc/passwd", "link.png", "folder/secret.png", "0.png\0.jpg", "0.png%00", "\\..\\secret"),
    *("0' OR '1'='1", "0'; DROP TABLE images; --", "x" * 5000),
)


@pytest.mark.parametrize("name", CLIMBS)
@pytest.mark.parametrize("route", ["thumb", "item", "similar", "original"])
def test_no_name_leads_out_of_the_collection(client: Any, route: str, name: str) -> None:
    assert client.get(f"/api/{route}", params={"id": name}).status_code == 404
    assert client.get(f"/api/{route}?id={name}".replace("\0", "%00")).status_code == 404


@pytest.mark.parametrize(
    "path", ["/%2e%2e/index.json", "/..%5cindex.json", "//etc/passwd", "/app.js%00.css", "/api/../x"]
)
def test_no_path_leads_to_a_file(client: Any, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::1].evil", "0.0.0.0"]
)
def test_another_name_of_this_machine_is_refused(client: Any, host: str) -> None:
    assert client.get("/api/about", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_page_cannot_post(index: Index, headers: dict[str, str]) -> None:
    drawn: list[str] = []

    def draw(words: str, seed: int) -> Image.Image:
        drawn.append(words)
        return Image.new("RGB", (4, 4))

    client = client_of(index, ServeSettings(generate=draw))
    for path in ("/api/generate?q=red", "/api/search/image"):
        assert client.post(path, headers=headers).status_code == 403
    assert drawn == []
    own = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert client.post("/api/generate?q=red", headers=own).status_code == 200


def test_no_other_method_and_no_giant_text(client: Any) -> None:
    for method in ("PUT", "DELETE", "PATCH", "POST"):
        assert client.request(method, "/api/search", params={"q": "x"}).status_code == 405
    assert client.get("/api/search", params={"q": "x" * 60_000}).status_code == 400
    assert client.post("/api/search/image", content=json.dumps([[]] * 100_000).encode()).status_code == 400
    assert client.get("/api/search", params={"q": "red", "k": "9" * 10_000}).status_code == 400


def test_a_body_that_does_not_come_is_given_up(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(30)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        **{
            "type": "http",
            "method": "POST",
            "path": "/api/search/image",
            "raw_path": b"/api/search/image",
            "query_string": b"",
        },
        **{"headers": [(b"host", b"127.0.0.1")], "scheme": "http", "server": ("127.0.0.1", 80), "root_path": ""},
        **{"http_version": "1.1", "client": ("127.0.0.1", 9)},
    }
    asyncio.run(asyncio.wait_for(make_app(index)(scope, receive, send), 20))
    assert sent[0]["status"] == 408


def test_many_uploads_are_decoded_a_few_at_a_time(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock, gate = [0], [0], threading.Lock(), threading.Event()

    def slow(data: bytes, size: int) -> Image.Image:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        gate.wait(0.3)
        with lock:
            running[0] -= 1
        return Image.new("RGB", (4, 4))

    monkeypatch.setattr(handlers, "read_upload", slow)
    client = client_of(index)
    with client:
        posts = [
            threading.Thread(target=client.post, args=("/api/search/image",), kwargs={"content": b"x"})
            for _ in range(12)
        ]
        for post in posts:
            post.start()
        for post in posts:
            post.join()
    assert most[0] == server.AT_ONCE


def test_captions_reach_the_page_as_text(client: Any) -> None:
    """As JSON, inserted with textContent only; the policy allows only the page's own script."""
    answer = client.get("/api/search", params={"q": "60 9 9", "k": 8})
    assert answer.headers["content-type"].startswith("application/json")
    assert any("<script>" in hit["text"] for hit in answer.json()["results"])
    script = client.get("/app.js").text
    for door in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert door not in script


def test_a_report_escapes_captions(tmp_path: Path) -> None:
    from csaligner.reporting.page import write_page

    values = {"title": "<script>alert(1)</script>", "intro": "<img src=x onerror=alert(1)>", "names": ["<b>"]}
    write_page("page.html", values, tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "<b>" not in text
    assert "default-src 'none'" in text


def test_thumbnails_are_small(client: Any) -> None:
    content = client.get("/api/thumb", params={"id": "0", "size": "160"}).content
    assert max(Image.open(io.BytesIO(content)).size) <= 160
