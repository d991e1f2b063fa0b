"""A page of titled sections in the report's style: one HTML file that asks the network for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from csaligner.files import write_text

from .style import style_sheet

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(title: str, intro: str, sections: Mapping[str, str], path: Path) -> None:
    """sections: title -> HTML that is safe already. Writes UTF-8, atomically."""
    links, body = [], []
    for name, html in sections.items():
        shown, ident = escape(name), escape(name, quote=True)
        links.append(f'<a href="#{ident}">{shown}</a>')
        body.append(f'<section id="{ident}"><h2>{shown}</h2>{html}</section>')
    nav = f'<nav aria-label="Data sets">{"".join(links)}</nav>'
    header = f'<h1>{escape(title)}</h1><p class="more">{escape(intro)}</p>{nav}'
    write_text(path, html_page(title, header, f"<main>{''.join(body)}</main>"))


def html_page(title: str, header: str, body: str) -> str:
    """The whole file; header, body: HTML that is safe already."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style_sheet()}</style></head>"
        f'<body><div class="wrap"><header>{header}</header>{body}</div></body></html>\n'
    )
