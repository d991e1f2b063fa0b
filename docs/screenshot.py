"""The screenshot of the README: one query in the raw and in the aligned space of one index, by the search page itself.

python docs/screenshot.py --out docs/raw_and_aligned.png

The index holds the emoji of OpenMoji's test split as images without captions, and their names as texts; the bundled
aligner was not trained on them. Needs the extras bundled, search and app, playwright, and Debian's Chromium.
"""

from __future__ import annotations

import argparse
import csv
import socket
import threading
import time
from pathlib import Path
from urllib.parse import urlencode

import uvicorn
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

from csaligner import build_index
from csaligner.app import make_app
from csaligner.datasets import OpenMoji, item_split, load_image

CHROMIUM = "/usr/bin/chromium"
WIDTH, HEIGHT, SCALE = 700, 900, 2
HIDDEN = "#bias ~ *, .controls, #panel-title"  # the map and the filters: the results are shown
TITLES = {"raw": "Raw: the results are texts", "aligned": "Aligned: images and texts"}


def write_items(folder: Path) -> None:
    """Write the test emoji as images, and their names as a table of texts."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    items = [item for item in OpenMoji().items() if item_split(item) == "test"]
    for item in items:
        name = item.captions[0].replace(" ", "_").replace("/", "_")
        load_image(item.image, 256).save(folder / "images" / f"{name}.png")
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["caption"])
        writer.writerows([caption] for caption in sorted({c for item in items for c in item.captions}))


def shoot(url: str, query: str, folder: Path) -> list[Path]:
    """Return one screenshot of the results per space."""
    paths = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for space in ("raw", *TITLES):  # the first search loads the encoders and is taken again
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE)
            address = {"q": query, "space": space, "compare": "1"}
            page.goto(f"{url}?{urlencode(address)}")
            page.wait_for_selector("#results > *", timeout=120_000)  # the encoders are loaded first
            page.wait_for_load_state("networkidle")
            page.evaluate("(hidden) => document.querySelectorAll(hidden).forEach((e) => e.remove())", HIDDEN)
            page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
            paths.append(folder / f"{space}.png")
            page.screenshot(path=str(paths[-1]))
        browser.close()
    return paths[1:]


def join(paths: list[Path], out: Path) -> None:
    """Put the screenshots side by side, below their titles, with few colours."""
    shots = [Image.open(path).convert("RGB") for path in paths]
    bar, between = 44 * SCALE, 16 * SCALE
    size = (sum(s.width for s in shots) + between * (len(shots) - 1), shots[0].height + bar)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(22 * SCALE)
    for n, (shot, title) in enumerate(zip(shots, TITLES.values(), strict=True)):
        left = n * (shot.width + between)
        pen.text((left + 8 * SCALE, 8 * SCALE), title, fill="#222222", font=font)
        sheet.paste(shot, (left, bar))
    half = sheet.resize((size[0] * 2 // 3, size[1] * 2 // 3), Image.Resampling.LANCZOS)
    half.quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/raw_and_aligned.png"))
    parser.add_argument("--query", default="a person doing sport")
    parser.add_argument("--work", type=Path, default=Path("build/screenshot"))
    options = parser.parse_args()
    if not (options.work / "texts.csv").exists():
        write_items(options.work)
    build_index(str(options.work / "images"), options.work / "emoji", "bundled")
    index, _ = build_index(str(options.work / "texts.csv"), options.work / "emoji", "bundled")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(index), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        join(shoot(f"http://127.0.0.1:{listener.getsockname()[1]}/", options.query, options.work), options.out)
        server.should_exit = True
        thread.join(5)


if __name__ == "__main__":
    main()
