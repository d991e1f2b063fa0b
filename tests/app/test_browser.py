"""Search page in Debian's Chromium, driven by Playwright; screenshots are written to build/screenshots."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csaligner.app.server import make_app
from csaligner.search.build import BuildSettings, build_index
from csaligner.search.index import Index

CHROMIUM = Path("/usr/bin/chromium")
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
DROP = """([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""
UNNAMED = """() => [...document.querySelectorAll("button, input, svg[tabindex]")].filter((e) => !(
  e.getAttribute("aria-label") || e.textContent.trim() || (e.labels && e.labels.length))).map((e) => e.outerHTML)"""

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed (apt install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def url(index: Index) -> Iterator[str]:
    with served(index) as address:
        yield address


@contextmanager
def served(index: Index) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(make_app(index), log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(5)


def open_page(browser: Any, url: str, width: int = 1280, scheme: str = "light") -> Any:
    context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.goto(url)
    page.wait_for_selector("body[data-ready]")
    return page


def ids(page: Any) -> int:
    page.wait_for_selector(".results:not([aria-busy]) .card")
    return int(page.locator(".card").count())


def picture(colour: tuple[int, int, int]) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_what_people_do(browser: Any, url: str) -> None:
    page = open_page(browser, url)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    assert page.evaluate(UNNAMED) == []

    page.get_by_label("Search text").fill("200 30 90")
    page.keyboard.press("Enter")
    assert ids(page) == 20
    assert page.locator(".card.image").count() > 0
    page.screenshot(path=str(SHOTS / "words-light.png"))

    page.get_by_role("button", name="Compare").click()
    page.get_by_role("radio", name="Raw").check()
    page.wait_for_function("() => document.querySelectorAll('.results .kind.image').length === 0")
    assert page.locator("#bias .far").count() == 2
    page.screenshot(path=str(SHOTS / "raw-light.png"))
    page.get_by_role("radio", name="Aligned").check()
    page.wait_for_function("() => document.querySelectorAll('.results .kind.image').length > 0")
    page.get_by_role("radio", name="Texts").check()
    page.wait_for_function("() => document.querySelectorAll('.card.image').length === 0")
    page.get_by_role("radio", name="Both").check()

    page.evaluate(DROP, [picture((20, 200, 40)), "leaf.png"])
    page.wait_for_function("() => document.querySelector('#chip-label').textContent === 'leaf.png'")
    assert ids(page) == 20
    page.screenshot(path=str(SHOTS / "picture-light.png"))

    box = page.locator("#map").bounding_box()
    mark = page.locator("#map circle.image").first.bounding_box()
    spot = {"x": mark["x"] - box["x"] + 3, "y": mark["y"] - box["y"] + 3}
    page.locator("#map").hover(position=spot)
    page.wait_for_function("() => document.querySelector('#tip-image').naturalWidth > 0")
    page.screenshot(path=str(SHOTS / "map-light.png"))
    page.locator("#map").click(position=spot)
    page.wait_for_selector("dialog[open] #dialog-image")
    page.screenshot(path=str(SHOTS / "dialog-light.png"))
    page.get_by_role("button", name="Find similar").click()
    page.wait_for_selector("dialog:not([open])", state="attached")
    assert ids(page) == 20

    assert all(address.startswith((url, "blob:", "data:")) for address in asked)
    page.context.close()


def test_a_bad_file_is_told_and_nothing_breaks(browser: Any, url: str) -> None:
    page = open_page(browser, url)
    page.evaluate(DROP, [base64.b64encode(b"no picture").decode(), "words.png"])
    page.get_by_role("alert").wait_for()
    assert "not a" in page.get_by_role("alert").inner_text()
    page.screenshot(path=str(SHOTS / "bad-file-light.png"))
    page.evaluate("() => { state.about.max_upload = 1_000_000; }")  # instead of uploading 10 MB
    page.get_by_label("Search by an image file").set_input_files(
        {"name": "big.png", "mimeType": "image/png", "buffer": b"\0" * 2_000_000}
    )
    page.wait_for_function("() => document.querySelector('#error').textContent.includes('1 MB')")
    page.get_by_label("Search text").fill("1 2 3")
    page.keyboard.press("Enter")
    assert ids(page) == 20
    assert not page.get_by_role("alert").is_visible()
    page.context.close()


def test_hostile_names_are_text(browser: Any, url: str) -> None:
    page = open_page(browser, url)
    page.get_by_label("Search text").fill("250 250 5")
    page.keyboard.press("Enter")
    ids(page)
    page.get_by_role("radio", name="Images").check()
    page.wait_for_function("() => document.querySelector('.card .title').textContent.startsWith('<img')")
    page.locator(".card.image").first.click()
    page.wait_for_selector("dialog[open]")
    assert page.locator("#dialog-title").inner_text().startswith("<img src=x onerror=")
    page.screenshot(path=str(SHOTS / "hostile-light.png"))
    assert page.evaluate("document.body.dataset.hacked") is None
    assert page.locator("main script, dialog script, dialog b").count() == 0
    page.context.close()


def test_the_keyboard_is_enough(browser: Any, url: str) -> None:
    page = open_page(browser, url)
    page.keyboard.press("/")
    page.keyboard.type("200 30 90")
    page.keyboard.press("Enter")
    ids(page)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('card')"):
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog:not([open])", state="attached")
    page.get_by_role("button", name="Compare").press("Enter")
    page.wait_for_selector("#map .image")
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#map-label").inner_text()
    moved = [page.keyboard.press(key) for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowUp")]
    assert len(moved) == 5
    assert page.locator("#map-label").inner_text() != first
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_phone_and_dark(browser: Any, url: str, width: int, scheme: str) -> None:
    page = open_page(browser, url, width, scheme)
    page.get_by_label("Search text").fill("200 30 90")
    page.keyboard.press("Enter")
    ids(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
    page.screenshot(path=str(SHOTS / f"words-{scheme}-{width}.png"), full_page=width == 390)
    page.context.close()


def test_the_address_holds_the_search(browser: Any, url: str) -> None:
    page = open_page(browser, f"{url}?q=200+30+90&only=images&space=centred")
    assert ids(page) == 20
    assert page.get_by_role("radio", name="Images").is_checked()
    assert page.get_by_role("radio", name="Centred").is_checked()
    page.get_by_label("Search text").fill("9 200 9")
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.search.includes('q=9+200+9') && document.title.startsWith('9 200 9')")
    page.go_back()
    page.wait_for_function("() => document.querySelector('#q').value === '200 30 90'")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert ids(page) == 20
    page.locator(".card.image").first.click()
    page.get_by_role("button", name="Find similar").click()
    page.wait_for_function("() => location.search.includes('similar=')")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert ids(page) == 20
    assert page.locator("#chip").is_visible()
    page.context.close()


def test_more_results_and_the_line_of_weak_ones(browser: Any, url: str) -> None:
    page = open_page(browser, f"{url}?q=200+30+90")
    assert ids(page) == 20
    page.get_by_role("button", name="More results").click()
    page.wait_for_function("() => document.querySelectorAll('.card').length === 40")
    assert page.evaluate(
        "document.activeElement.closest('li') === document.querySelectorAll('.card')[20].closest('li')"
    )
    page.get_by_role("button", name="More results").click()
    page.wait_for_function("() => document.querySelector('#more').hidden")
    assert page.locator(".weak-line").count() == 1
    before = page.evaluate(
        "[...document.querySelector('.results').children].map((e) => e.querySelector('.card.weak') !== null)"
    )
    line = page.evaluate("[...document.querySelector('.results').children].findIndex((e) => e.matches('.weak-line'))")
    assert not any(before[:line])
    assert all(before[line + 1 :])
    page.context.close()


def test_the_original_can_be_opened_saved_and_its_path_copied(browser: Any, url: str, world: Any) -> None:
    page = open_page(browser, f"{url}?q=200+30+90&only=images")
    ids(page)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    page.locator(".card.image").first.click()
    page.get_by_role("button", name="Copy path").click()
    page.wait_for_function("() => document.querySelector('#copied').textContent !== ''")
    path = page.evaluate("navigator.clipboard.readText()")
    assert Path(path).parent == world.folder
    with page.expect_download() as saved:
        page.get_by_role("link", name="Download").click()
    assert Path(saved.value.path()).read_bytes() == Path(path).read_bytes()
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Open original").click()
    opened.value.wait_for_load_state()
    assert opened.value.evaluate("document.contentType") == "image/png"
    page.context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_an_image_and_words_are_one_query_and_fused_items_show_both(
    browser: Any, world: Any, tmp_path: Path, width: int
) -> None:
    world.many(40)
    world.write("note.md", "9 9 9")
    settings = BuildSettings(fuse=0.5)
    index = build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders, settings=settings)[
        0
    ]
    with served(index) as url:
        page = open_page(browser, url, width)
        assert "40 images with captions" in page.locator("#counts").inner_text()
        page.evaluate(DROP, [picture((20, 200, 40)), "leaf.png"])
        assert ids(page) == 20
        assert not page.get_by_label("Weight of the image").is_visible()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.get_by_label("Search text").fill("200 30 90")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.title.startsWith('200 30 90')")
        assert ids(page) == 20
        assert any("search/image" in a and "q=200+30+90" in a and "image_weight=0.5" in a for a in asked)
        assert page.locator(".kind.both").first.inner_text() == "by both"
        first = page.locator(".card .title").first.inner_text()
        page.get_by_label("Weight of the image").fill("0")
        page.wait_for_function("(old) => document.querySelector('.card .title').textContent !== old", arg=first)
        assert any("image_weight=0&" in a or a.endswith("image_weight=0") for a in asked)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=str(SHOTS / f"fused-{width}.png"))
        page.locator(".card.image").first.click()
        page.wait_for_selector("dialog[open] #dialog-image")
        assert page.locator("#dialog-title").inner_text()
        page.get_by_role("button", name="Close").click()
        page.get_by_role("button", name="Remove the image").click()
        page.wait_for_function("() => location.search.includes('q=200+30+90')")
        assert not page.locator("#chip").is_visible()
        page.context.close()
