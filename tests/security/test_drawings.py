"""A drawing that crashes the renderer or runs without end costs that drawing, on every route."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from csaligner.datasets.images import drawing
from csaligner.datasets.images.load import ImageError, load_image
from csaligner.search.build import build_index
from csaligner.search.index import Index
from csaligner.store.decode_workers import decoded_batches
from csaligner.types import Item
from tests.support.clean_process import in_clean_process
from tests.support.colours import ColourImages, World, make_world

from .drawings import CRASH, ENDLESS, PLAIN, svg

pytest.importorskip("resvg_py", reason="resvg is not installed")
RED = (250, 0, 0)
FEW = ("octaves", "patterns", "3,000 x feTurbulence")  # one filter, nested elements, many filters; all in make nightly


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "SECONDS", 0)  # up to one second, which the limit is rounded up to


def save(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_241_bytes_do_not_end_the_process(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ImageError, match="renderer"):
            load_image(save(tmp_path / "a.svg", CRASH))
    assert load_image(save(tmp_path / "b.svg", PLAIN)).getpixel((9, 9)) == RED


@pytest.mark.parametrize("name", ENDLESS if "CSALIGNER_HEAVY" in os.environ else FEW)
def test_a_drawing_without_end_is_given_up(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=r"seconds|memory"):
        load_image(save(tmp_path / "a.svg", ENDLESS[name]))
    assert load_image(save(tmp_path / "b.svg", PLAIN)).getpixel((9, 9)) == RED


def test_the_renderer_has_a_limit_of_memory(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    layers = '<g filter="url(#f)" opacity="0.5">' * 50 + '<rect width="9" height="9"/>' + "</g>" * 50
    blur = '<filter id="f"><feGaussianBlur stdDeviation="1"/></filter>'
    path = save(tmp_path / "a.svg", svg(blur + layers))
    with pytest.raises(ImageError, match="drawn"):
        load_image(path, size=20_000)  # 1.6 GB a layer


def test_a_process_that_was_killed_is_replaced(tmp_path: Path) -> None:
    load_image(save(tmp_path / "a.svg", PLAIN))
    for child in children():
        os.kill(child, signal.SIGKILL)
    assert load_image(save(tmp_path / "b.svg", svg("<text>b</text>" + PLAIN))).size == (224, 224)
    assert load_image(tmp_path / "a.svg").getpixel((9, 9)) == RED


def test_threads_get_their_own_drawings(tmp_path: Path) -> None:
    found: dict[int, Any] = {}

    def draw(n: int) -> None:
        text = PLAIN.replace("fa0000", f"{n:02x}0000")
        try:
            found[n] = load_image(save(tmp_path / f"{n}.svg", CRASH + f"<!--{n}-->" if n % 5 == 0 else text))
        except ImageError as error:
            found[n] = error

    threads = [threading.Thread(target=draw, args=(n,)) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, image in found.items():
        assert isinstance(image, ImageError) if n % 5 == 0 else image.getpixel((9, 9)) == (n, 0, 0)


def test_a_fork_draws_with_processes_of_its_own(tmp_path: Path) -> None:
    children()  # skips the test where there is no /proc
    in_clean_process(fork_and_draw, save(tmp_path / "a.svg", PLAIN))


def fork_and_draw(path: Path) -> None:
    load_image(path)
    before = children()
    child = os.fork()
    if child == 0:
        right = load_image(path).getpixel((9, 9)) == RED and not set(children()) & set(before)
        os._exit(0 if right else 1)
    assert load_image(path).getpixel((9, 9)) == RED
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert set(children()) == set(before)  # the fork's have ended, these have not


def test_forks_while_threads_draw(tmp_path: Path) -> None:
    """At whatever moment of a drawing a process is forked, it and its parent keep on drawing."""
    in_clean_process(fork_while_threads_draw, save(tmp_path / "a.svg", PLAIN))


def fork_while_threads_draw(path: Path) -> None:
    load_image(path)  # a fork while a thread imports a module waits for ever for that module, in any program
    stop, wrong = threading.Event(), list[object]()

    def draw_on() -> None:
        while not stop.is_set():
            if (found := load_image(path).getpixel((9, 9))) != RED:
                wrong.append(found)

    threads = [threading.Thread(target=draw_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            assert forked_draws(path) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def forked_draws(path: Path) -> int:
    """Return the exit code of a fork that draws: 0 if it is right, -SIGALRM if it waits for ever."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)
            code = 0 if load_image(path).getpixel((9, 9)) == RED else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def children() -> list[int]:
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("needs /proc")
    found = ""
    for task in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found += " " + (task / "children").read_text()
    return sorted(pid for pid in map(int, found.split()) if b"draw_worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = make_world(tmp_path)
    made.many(3)
    made.write("bad.svg", CRASH)
    made.write("good.svg", PLAIN)
    return made


@pytest.mark.parametrize("workers", [0, 2])
def test_embedding_loses_one_image(world: World, workers: int) -> None:
    paths = sorted(p for p in world.folder.iterdir() if p.suffix != ".txt")
    items = [Item(path.name, path, ("x",), group=path.name) for path in paths]
    (batch,) = decoded_batches(items, ColourImages(), [list(range(len(items)))], workers)
    assert [paths[n].name for n in batch.bad] == ["bad.svg"]
    assert len(batch.good) == 4


def test_index_and_page_lose_one_image(world: World) -> None:
    pytest.importorskip("lancedb", reason="lancedb is not installed")
    pytest.importorskip("httpx", reason="httpx is not installed")
    index, report = build_index(
        str(world.folder), world.folder.parent / "index", str(world.run), encoders=world.encoders
    )
    assert [line for line in report.skipped if "bad.svg" in line] == list(report.skipped) != []
    world.write("good.svg", CRASH)  # changed since
    assert thumb(index, "good.svg").status_code == 404
    assert thumb(index, "000").status_code == 200


def thumb(index: Index, name: str) -> Any:
    from starlette.testclient import TestClient

    from csaligner.app.server import make_app

    row = next(row for row in index.items.by_id([name, name.removesuffix(".svg")]))
    client = TestClient(make_app(index), base_url="http://127.0.0.1")
    return client.get("/api/thumb", params={"id": row.id})
