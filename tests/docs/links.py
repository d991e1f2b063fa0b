"""Checker of a built site: links, anchors, images and scripts exist; nothing is loaded from other hosts; code is read.

python tests/docs/links.py FOLDER
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LOADING = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src"}  # fetched without a click
FETCHED_RELS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload"}


class Page(HTMLParser):
    """Anchors, links and fetched resources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.unread = False  # a code block that was not recognised, whose end takes the rest of the page
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.unread |= data.startswith("```") or "\n```" in data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if found.get(LOADING.get(tag, "")):
            self.fetched.append(found[LOADING[tag]])
        if tag == "link" and FETCHED_RELS & set(found.get("rel", "").split()):
            self.fetched.append(found["href"])


def problems(site: Path) -> list[str]:
    """Return one line per problem."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        here = site if name.name == "404.html" else path.parent  # served at any address, so its links are absolute
        if page.unread:
            found.append(f"{name}: shows a code fence (```) as text")
        found += [f"{name}: loads {url}" for url in page.fetched if urlsplit(url).netloc]
        for url in [*page.links, *page.fetched]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            address, anchor = urldefrag(url)
            target = here / unquote(urlsplit(address).path).lstrip("/") if address else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{name}: nothing at {url}")
            elif anchor and target.suffix == ".html" and unquote(anchor) not in pages[target.resolve()].anchors:
                found.append(f"{name}: no anchor {url}")
    return found


def main() -> int:
    site = Path(sys.argv[1]).resolve()
    lines = problems(site)
    print("\n".join(lines) or f"site: {len(list(site.rglob('*.html')))} pages, every link leads somewhere")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
