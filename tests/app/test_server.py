"""Search server: responses, rejected requests and access control."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csaligner.app.collection import file_within
from csaligner.app.guard import is_loopback
from csaligner.app.pictures import MAX_UPLOAD
from csaligner.app.server import ServeSettings, make_app, serve
from csaligner.checks import InputError
from csaligner.search.build import build_index
from csaligner.search.index import Index

pytest.importorskip("starlette", reason="starlette is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")


def client_of(index: Index, settings: ServeSettings | None = None, host: str = "127.0.0.1") -> Any:
    from starlette.testclient import TestClient

    return TestClient(make_app(index, settings), base_url=f"http://{host}", raise_server_exceptions=False)


@pytest.fixture
def client(index: Index) -> Any:
    return client_of(index)


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Return a PNG with a large size in its header and almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_words_and_a_picture_find_the_same_pictures(client: Any) -> None:
    by_words = client.get("/api/search", params={"q": "200 30 90", "only": "images", "k": 5}).json()
    by_picture = client.post("/api/search/image", params={"only": "images", "k": 5}, content=png((200, 30, 90))).json()
    assert [h["id"] for h in by_words["results"]] == [h["id"] for h in by_picture["results"]]
    assert len(by_words["results"]) == 5


def test_words_and_an_image_are_one_query(client: Any) -> None:
    def found(**params: Any) -> Any:
        return client.post("/api/search/image", params=params, content=png((9, 9, 250)))

    image, words = found(only="images"), client.get("/api/search", params={"q": "250 9 9", "only": "images"})
    both = found(q="250 9 9", only="images").json()
    assert [r["id"] for r in both["results"]] not in ([r["id"] for r in a.json()["results"]] for a in (image, words))
    assert both["weak_limit"] is not None
    for weight, single in ((0, words), (1, image)):
        answer = found(q="250 9 9", only="images", image_weight=weight).json()
        assert {**answer, "seconds": 0} == {**single.json(), "seconds": 0}
    assert found(q=" ").json()["results"] == found().json()["results"]
    for wrong in ({"image_weight": "2"}, {"image_weight": "nan"}, {"image_weight": "much"}, {"q": "9" * 2001}):
        assert found(**{"q": "9", **wrong}).status_code == 400


def test_an_image_is_one_result_with_the_caption_that_matched(client: Any) -> None:
    found = client.get("/api/search", params={"q": "200 30 90", "k": 60}).json()["results"]
    assert {result["modality"] for result in found} == {"image", "text"}
    assert [result["score"] for result in found] == sorted((result["score"] for result in found), reverse=True)
    images = [result for result in found if result["modality"] == "image"]
    assert len({result["id"] for result in images}) == len(images) == 41
    assert all(result["text"] for result in images)
    assert {result["file"] for result in found if result["modality"] == "text"} == {"notes/read me.md"}
    assert all(result["file"] == f"{result['id']}.png" for result in images if result["id"].isdecimal())


def test_pages_continue_the_list(client: Any) -> None:
    every = client.get("/api/search", params={"q": "9 200 9", "k": 60}).json()
    pages = [client.get("/api/search", params={"q": "9 200 9", "k": 20, "offset": at}).json() for at in (0, 20, 40)]
    assert [r["id"] for page in pages for r in page["results"]] == [r["id"] for r in every["results"]]
    assert [page["more"] for page in pages] == [True, True, False]
    assert client.get("/api/search", params={"q": "9", "offset": "990", "k": "20"}).status_code == 400


def test_a_misspelt_parameter_is_named(client: Any) -> None:
    answer = client.get("/api/search", params={"query": "red"})
    assert answer.status_code == 400
    assert "the query is q" in answer.text


def test_weak_results_are_below_the_limit(client: Any) -> None:
    answer = client.get("/api/search", params={"q": "200 30 90", "k": 60}).json()
    weak = [result["weak"] for result in answer["results"]]
    assert weak == sorted(weak)
    assert all(result["score"] <= answer["weak_limit"] + 1e-3 for result in answer["results"] if result["weak"])


def test_it_becomes_ready_and_names_the_collection(index: Index, world: Any) -> None:
    client = client_of(index)
    assert client.get("/api/about").json()["name"] == world.folder.name
    assert f"<title>{world.folder.name}</title>" in client.get("/").text
    assert ready(client)["error"] == ""
    assert "<title>&lt;b&gt;mine</title>" in client_of(index, ServeSettings(name="<b>mine")).get("/").text


def ready(client: Any) -> dict[str, Any]:
    """Return the status of the server when its encoders are loaded."""
    until = time.monotonic() + 20
    while not (status := client.get("/api/status").json())["ready"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    return dict(status)


def opened_with(index: Index, encoder: Any, open_other: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a client of the index, of which one encoder is given and the other is opened by a function."""
    monkeypatch.setattr("csaligner.model.open_encoder", open_other)
    return client_of(Index.open(index.path, [encoder]))


def test_a_search_by_text_does_not_wait_for_the_image_encoder(
    index: Index, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, text = sorted(world.encoders, key=lambda encoder: encoder.info.modality)
    go_on = threading.Event()
    client = opened_with(index, text, lambda *_: go_on.wait(20) and image, monkeypatch)
    assert client.get("/api/about").status_code == 200  # loading begins
    found = client.get("/api/search", params={"q": "200 30 90", "k": 5}).json()["results"]
    assert len(found) == 5
    assert not client.get("/api/status").json()["ready"]
    go_on.set()
    assert ready(client)["error"] == ""
    assert client.post("/api/search/image", content=png((200, 30, 90))).status_code == 200


@pytest.mark.parametrize("broken", ["image", "text"])
def test_an_encoder_that_cannot_be_loaded_is_told(
    index: Index, world: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no model")

    (works,) = (encoder for encoder in world.encoders if encoder.info.modality != broken)
    client = opened_with(index, works, fail, monkeypatch)
    assert "no model" in ready(client)["error"]
    by_text = client.get("/api/search", params={"q": "200 30 90"})
    by_image = client.post("/api/search/image", content=png((200, 30, 90)))
    answers = {"text": by_text.status_code, "image": by_image.status_code}
    assert {modality for modality, status in answers.items() if status == 200} == {works.info.modality}


def test_the_server_stops_while_encoders_are_loaded(index: Index) -> None:
    script = (
        "import sys, time, csaligner.model\n"
        "from csaligner.app.server import ServeSettings, serve\n"
        "from csaligner.search.index import Index\n"
        "csaligner.model.open_encoder = lambda *_: time.sleep(60)\n"
        "serve(Index.open(sys.argv[1]), ServeSettings(port=0), lambda url: print(url, flush=True))\n"
    )
    command = [sys.executable, "-c", script, str(index.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            until = time.monotonic() + 20
            while httpx.get(f"{url}api/status").status_code != 200:
                assert time.monotonic() < until
            process.send_signal(signal.SIGINT)
            process.wait(20)
        finally:
            process.kill()


def test_the_original_is_the_file(client: Any, world: Any) -> None:
    shown = client.get("/api/original", params={"id": "003"})
    assert shown.content == (world.folder / "003.png").read_bytes()
    assert shown.headers["content-type"] == "image/png"
    assert shown.headers["content-disposition"] == "inline; filename*=UTF-8''003.png"
    saved = client.get("/api/original", params={"id": "003", "download": "1"})
    assert saved.headers["content-disposition"].startswith("attachment")
    assert saved.content == shown.content


def test_an_original_that_is_no_plain_image_is_never_displayed(client: Any, world: Any) -> None:
    (world.folder / "003.png").write_text("<script>alert(1)</script>", encoding="utf-8")
    assert client.get("/api/original", params={"id": "003"}).status_code == 404
    assert client.get("/api/original", params={"id": "003#caption-1"}).status_code == 404
    Image.new("RGB", (9, 9)).save(world.folder / "004.png", "TIFF")
    tiff = client.get("/api/original", params={"id": "004"})
    assert tiff.headers["content-type"] == "application/octet-stream"
    assert tiff.headers["content-disposition"].startswith("attachment")


def test_a_drawing_is_only_downloaded(world: Any, write: Any, tmp_path: Path) -> None:
    write("a.svg", '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>')
    index = build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]
    answer = client_of(index).get("/api/original", params={"id": "a"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_the_path_is_for_this_machine_only(index: Index, world: Any) -> None:
    def path(client: Any, **headers: str) -> Any:
        return client.get("/api/item", params={"id": "003"}, headers=headers).json().get("path")

    assert path(client_of(index)) == str(world.folder / "003.png")
    assert path(client_of(index), **{"x-forwarded-for": "192.0.2.1"}) is None
    assert path(client_of(index, ServeSettings(host="0.0.0.0"))) is None
    assert path(client_of(index, ServeSettings(host="0.0.0.0"), "box.local")) is None


def test_the_description_covers_every_route_and_field(client: Any) -> None:
    api = client.get("/openapi.json").json()
    page = client.get("/api.html").text
    assert "<script" not in page
    assert all(path in page for path in api["paths"])
    schemas = api["components"]["schemas"]
    answers = {
        "Answer": client.get("/api/search", params={"q": "1 2 3"}).json(),
        "Result": client.get("/api/search", params={"q": "1 2 3"}).json()["results"][0],
        "Item": client.get("/api/item", params={"id": "003"}).json(),
        "About": client.get("/api/about").json(),
        "Status": client.get("/api/status").json(),
        "Map": client.get("/api/map").json(),
        "Error": client.get("/api/item", params={"id": "no"}).json(),
    }
    assert {name: set(schemas[name]["properties"]) for name in schemas} == {n: set(a) for n, a in answers.items()}
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            assert client.request(method, path, params={"q": "1 2 3", "id": "003"}).status_code in {200, 400}, operation
            assert operation["summary"]


def test_about_tells_the_spaces_and_their_bias(client: Any) -> None:
    about = client.get("/api/about").json()
    assert about["spaces"] == ["aligned", "raw", "centred"]
    assert abs(about["bias"]["aligned"]["text"]) < 0.05 < about["bias"]["raw"]["text"]


def test_the_map_holds_every_item_inside_the_square(client: Any, index: Index) -> None:
    points = client.get("/api/map").json()["points"]
    assert len(points) == len(index)
    assert all(0 <= value <= 1 for point in points for value in point[3:])
    assert client.get("/api/map", params={"space": "raw"}).json()["points"] != points


def test_like_finds_an_item_itself_first(client: Any) -> None:
    assert client.get("/api/similar", params={"id": "003", "only": "images"}).json()["results"][0]["id"] == "003"


def test_thumbnails_are_small_pictures(client: Any) -> None:
    answer = client.get("/api/thumb", params={"id": "003", "size": 160})
    assert answer.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(answer.content)).size) <= 160


@pytest.mark.parametrize(
    "item", ["../../../etc/passwd", "/etc/passwd", "notes/read me.md#1", "003/../004.png", "no", "' OR '1'='1", ""]
)
def test_nothing_but_indexed_pictures_can_be_read(client: Any, item: str) -> None:
    answer = client.get("/api/thumb", params={"id": item})
    assert answer.status_code == 404
    assert "/" not in answer.json()["error"].replace(item, "")


@pytest.mark.parametrize(
    "path", ["/../pyproject.toml", "/%2e%2e/%2e%2e/etc/passwd", "/app.py", "/static/app.js", "/.lock"]
)
def test_paths_that_climb_are_not_there(client: Any, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_picture_that_became_a_link_is_not_followed(client: Any, world: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9), (1, 2, 3)).save(secret)
    (world.folder / "003.png").unlink()
    os.symlink(secret, world.folder / "003.png")
    assert client.get("/api/thumb", params={"id": "003"}).status_code == 404


def test_a_vanished_picture_is_told(client: Any, world: Any) -> None:
    (world.folder / "003.png").unlink()
    assert client.get("/api/thumb", params={"id": "003"}).status_code == 404
    hits = client.get("/api/search", params={"q": "9 9 9", "k": 60}).json()["results"]
    assert [hit["id"] for hit in hits if hit["missing"]] == ["003"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a readable image"),
        (b"hello", "not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/x.png'/></svg>", "not a readable image"),
        (bomb(60_000, 60_000), "larger than"),
        (bomb(6_000, 6_000), "6000 x 6000"),
        (png((1, 2, 3), (64, 64))[:60], "damaged"),
    ],
)
def test_bad_pictures_are_one_line(client: Any, content: bytes, words: str) -> None:
    answer = client.post("/api/search/image", content=content)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_a_hundred_megabytes_are_refused_before_they_are_read(client: Any) -> None:
    sent = 0

    def stream() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b"\0" * 1_000_000

    declared = client.post("/api/search/image", content=b"x", headers={"content-length": "100000000"})
    assert declared.status_code == 413
    chunked = client.post("/api/search/image", content=stream())
    assert chunked.status_code == 413
    assert f"{MAX_UPLOAD // 1_000_000} MB" in chunked.json()["error"]


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("search", {"q": ""}),
        ("search", {"q": "x" * 3000}),
        ("search", {"q": "x", "k": "-1"}),
        ("search", {"q": "x", "k": "9999"}),
        ("search", {"q": "x", "k": "٣"}),
        ("search", {"q": "x", "space": "nope"}),
        ("search", {"q": "x", "only": "nope"}),
        ("map", {"space": "nope"}),
        ("thumb", {"id": "003", "size": "huge"}),
    ],
)
def test_wrong_words_are_a_400_with_a_reason(client: Any, path: str, params: dict[str, str]) -> None:
    answer = client.get(f"/api/{path}", params=params)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_answers_hold_no_path_of_this_machine(client: Any, world: Any) -> None:
    for answer in (
        client.get("/api/search", params={"q": "1 2 3", "k": 60}),
        client.get("/api/similar", params={"id": "003", "k": 60}),
        client.get("/api/about"),
        client.get("/api/map"),
    ):
        assert str(world.folder) not in answer.text
        assert str(world.folder.parent) not in answer.text


def test_captions_name_the_file_of_their_image(client: Any) -> None:
    found = client.get("/api/search", params={"q": "1 2 3", "k": 60, "only": "texts"}).json()["results"]
    captions = [result for result in found if result["images"]]
    assert captions
    assert all(result["file"].endswith(".png") for result in captions)
    item = client.get("/api/item", params={"id": captions[0]["hit"]}).json()
    assert item["file"] == captions[0]["file"]


@pytest.mark.parametrize(
    ("place", "sources", "file"),
    [
        ("/home/ann/photos/sea/a.jpg", ["/home/ann/photos"], "sea/a.jpg"),
        ("/home/ann/photos/sea/a.jpg", ["/home/ann/photos/list.csv"], "sea/a.jpg"),
        ("/mnt/card/a.jpg", ["/home/ann/photos"], "a.jpg"),
        ("/home/ann/t.parquet#image[3]", ["/home/ann/t.parquet"], "t.parquet"),
        ("/usr/share/openmoji/1F34E.svg", ["openmoji"], "1F34E.svg"),
        ("", ["/home/ann"], ""),
    ],
)
def test_a_file_is_named_within_its_data(place: str, sources: list[str], file: str) -> None:
    assert file_within(place, sources) == file


def test_every_answer_forbids_foreign_code(client: Any) -> None:
    for path in ("/", "/app.js", "/api/about", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_host(client: Any) -> None:
    for path in ("/", "/app.css", "/app.js", "/map.js", "/icon.svg", "/api.html"):
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "//cdn" not in text


def test_a_foreign_host_name_is_refused_on_loopback_only(index: Index) -> None:
    assert client_of(index, host="evil.example").get("/api/about").status_code == 421
    assert client_of(index, host="localhost:7860").get("/api/about").status_code == 200
    open_one = ServeSettings(host="0.0.0.0")
    assert client_of(index, open_one, "my-server.example").get("/api/about").status_code == 200


def test_a_password_is_asked_for(index: Index) -> None:
    client = client_of(index, ServeSettings(password="pass:wörd"))
    assert client.get("/").status_code == 401
    assert "Basic" in client.get("/").headers["www-authenticate"]

    def ask(words: bytes) -> int:
        header = "Basic " + base64.b64encode(words).decode()
        return int(client.get("/api/about", headers={"authorization": header}).status_code)

    assert ask("me:pass:wörd".encode()) == 200
    assert ask(b"me:wrong") == 401
    assert ask(b"") == 401
    assert client.get("/", headers={"authorization": "Basic %%%"}).status_code == 401


def test_who_can_reach_it() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.4", "box.local")] == [False] * 4
    assert ServeSettings(host="0.0.0.0").is_open
    assert not ServeSettings(host="0.0.0.0", password="x").is_open
    assert not ServeSettings().is_open


def test_generation_only_where_a_decoder_is(index: Index) -> None:
    assert not client_of(index).get("/api/about").json()["generate"]
    assert client_of(index).post("/api/generate", params={"q": "red"}).status_code == 400
    asked = []

    def draw(words: str, seed: int) -> Image.Image:
        asked.append((words, seed))
        return Image.new("RGB", (4, 4), "red")

    client = client_of(index, ServeSettings(generate=draw))
    answer = client.post("/api/generate", params={"q": "red", "seed": "7"})
    assert answer.headers["content-type"] == "image/png"
    assert asked == [("red", 7)]
    assert client.get("/api/generate", params={"q": "red"}).status_code == 405


def test_whoever_reads_the_address_can_connect_at_once(index: Index) -> None:
    class Enough(Exception):
        pass

    def connect(address: str) -> None:
        port = int(address.rstrip("/").rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        raise Enough

    with pytest.raises(Enough):
        serve(index, ServeSettings(port=0), connect)


def test_an_address_that_is_taken_is_one_line(index: Index) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"127\.0\.0\.1"):
            serve(index, ServeSettings(port=taken.getsockname()[1]))


HEADERS = {"host": "photos.example.org", "x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}


@pytest.mark.parametrize("passes_host", [True, False])
@pytest.mark.parametrize("strips_root", [True, False])
def test_behind_a_proxy(index: Index, passes_host: bool, strips_root: bool) -> None:
    settings = ServeSettings(allow_hosts=("photos.example.org",), root_path="/search")
    client, root = client_of(index, settings), "" if strips_root else "/search"
    headers = HEADERS if passes_host else {**HEADERS, "host": "127.0.0.1:7860"}
    assert client.get(f"{root}/", headers=headers).status_code == 200
    assert client.get(f"{root}/api/search?q=red", headers=headers).json()["results"]
    origin = {"origin": "https://photos.example.org", "sec-fetch-site": "same-origin"}
    body = png((255, 0, 0))
    assert client.post(f"{root}/api/search/image", content=body, headers=headers | origin).status_code == 200
    foreign = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    assert client.post(f"{root}/api/search/image", content=body, headers=headers | foreign).status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    moved = client.get("/search", headers=headers, follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (307, "/search/")


def test_forwarded_headers_do_not_allow_a_host(index: Index) -> None:
    client = client_of(index, ServeSettings())
    headers = {"host": "evil.example", "x-forwarded-host": "127.0.0.1", "forwarded": "host=127.0.0.1"}
    answer = client.get("/", headers=headers)
    assert answer.status_code == 421
    assert "--allow-host" in answer.text


@pytest.mark.parametrize(
    ("setting", "value"), [("allow_hosts", ("https://a.b",)), ("allow_hosts", ("a:80",)), ("root_path", "search/")]
)
def test_settings_of_a_proxy_are_checked(setting: str, value: Any) -> None:
    with pytest.raises(InputError, match=setting.removesuffix("s")):
        ServeSettings(**{setting: value})


def test_every_error_of_the_api_is_json(index: Index) -> None:
    client, secret = client_of(index), client_of(index, ServeSettings(password="x"))
    root = client_of(index, ServeSettings(root_path="/search", allow_hosts=("photos.example",)), "photos.example")
    wrong = {"authorization": "Basic %%%"}
    foreign = {"origin": "http://evil.example"}
    answers = {
        404: [client.get("/api/nope"), client.get("/api"), root.get("/search/api/nope"), root.get("/api/nope")],
        405: [client.post("/api/search"), client.get("/api/search/image"), root.post("/search/api/search")],
        421: [client_of(index, host="evil.example").get("/api/about")],
        401: [secret.get("/api/about"), secret.get("/api/about", headers=wrong)],
        403: [client.post("/api/search/image", headers=foreign)],
    }
    for status, found in answers.items():
        assert [answer.status_code for answer in found] == [status] * len(found)
        for answer in found:
            assert answer.headers["content-type"] == "application/json"
            assert list(answer.json()) == ["error"]
    assert "GET" in client.post("/api/search").headers["allow"]
    assert "GET" in client.post("/api/search").json()["error"]
    assert client.get("/nope").headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("k", ["0", "-3", "61"])
def test_the_number_of_results_has_two_limits(client: Any, k: str) -> None:
    answer = client.get("/api/search", params={"q": "red", "k": k})
    assert answer.status_code == 400
    assert "from 1 to 60" in answer.json()["error"]


def test_ctrl_c_stops_the_command_without_an_error(index: Index) -> None:
    command = [sys.executable, "-m", "csaligner.cli", "serve", str(index.path), "--port", "0", "--trust"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while "Open http" not in (line := process.stderr.readline()):
                assert line, "the server did not start"
            time.sleep(0.5)  # until uvicorn handles the signal
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            assert "resume" not in process.stderr.read()
        finally:
            process.kill()
