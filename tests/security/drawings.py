"""Small drawings that crash the renderer or exhaust time or memory."""

from __future__ import annotations

from collections.abc import Mapping

HEAD = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9" height="9"'
SQUARE = '<rect width="9" height="9" {}/>'
FILTERED = SQUARE.format('filter="url(#f)"')


def svg(inner: str) -> str:
    return f"<svg {HEAD}>{inner}</svg>"


def nested(tag: str, use: str, extra: str = "", levels: int = 20) -> str:
    """Return elements of which each uses the one before it four times: 4^levels squares."""
    parts = [f'<{tag} id="p0" {extra}>{SQUARE.format("")}</{tag}>']
    for n in range(1, levels):
        squares = SQUARE.format(f'{use}="url(#p{n - 1})"') * 4
        parts.append(f'<{tag} id="p{n}" {extra}>{squares}</{tag}>')
    return svg("".join(parts) + SQUARE.format(f'{use}="url(#p{levels - 1})"'))


def filtered(effects: str, more: str = "") -> str:
    return svg(f'<filter id="f">{effects}</filter><g id="g">{FILTERED}</g>{more}')


def markers() -> str:
    one = '<marker id="m{}" markerWidth="9" markerHeight="9"><path d="M0 0{}" {}/></marker>'
    many = [one.format(n, "L9 9L0 3" * 8, f'marker-mid="url(#m{n - 1})"' if n else "") for n in range(12)]
    return svg("".join(many) + '<path d="M0 0L1 1L2 2L3 3" marker-mid="url(#m11)"/>')


def long_path() -> str:
    points = "".join(f"L{n % 9} {n % 7}" for n in range(20_000))
    marker = '<marker id="m" markerWidth="9" markerHeight="9"><path d="M0 0L9 9"/></marker>'
    return svg(f'{marker}<path marker-mid="url(#m)" d="M0 0{points}"/>')


CRASH = filtered('<feImage href="#g"/>')  # draws itself
PLAIN = svg('<rect width="9" height="9" fill="#fa0000"/>')
ENDLESS: Mapping[str, str] = {
    "octaves": filtered('<feTurbulence baseFrequency="0.1" numOctaves="100000000"/>'),
    "patterns": nested("pattern", "fill", 'width="9" height="9" patternUnits="userSpaceOnUse"'),
    "clip paths": nested("clipPath", "clip-path"),
    "masks": nested("mask", "mask"),
    "markers": markers(),
    "a marker at 20,000 points": long_path(),
    "500 x feMorphology": filtered('<feMorphology operator="dilate" radius="100"/>' * 500),
    "3,000 x feTurbulence": filtered('<feTurbulence baseFrequency="0.1"/>' * 3000, '<use xlink:href="#g"/>' * 200),
}
