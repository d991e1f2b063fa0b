"""Colour palette of figures and pages, with light and dark values.

Figures are drawn in the light values; in a page every colour becomes var(--name), which follows the light or dark
mode. Modalities and methods are distinguishable with common colour vision deficiencies (Okabe & Ito's hues).
"""

from __future__ import annotations

LIGHT = {
    "page": "#fbfbfa",
    "card": "#fffffe",
    "ink": "#1d2430",
    "soft": "#5b6472",
    "rule": "#dde1e6",
    "image": "#0072b2",
    "text": "#d55e00",
    "paired": "#00795b",
    "unpaired": "#8c94a0",
    "good": "#00795c",
    "bad": "#b3261e",
    "method0": "#00795a",
    "method1": "#a3408a",
    "method2": "#8a6d00",
    "method3": "#3b6fd4",
    "method4": "#6b7280",
}
DARK = {
    "page": "#14171c",
    "card": "#1b1f26",
    "ink": "#e6e9ee",
    "soft": "#9fa8b5",
    "rule": "#313844",
    "image": "#56b4e9",
    "text": "#ff9a4d",
    "paired": "#2fc79c",
    "unpaired": "#8791a0",
    "good": "#2fc79b",
    "bad": "#ff8a80",
    "method0": "#2fc79a",
    "method1": "#e08ccb",
    "method2": "#e3c04d",
    "method3": "#8fb2ff",
    "method4": "#a0a8b4",
}
METHOD_COLOURS = ("method0", "method1", "method2", "method3", "method4")
METHOD_DASHES = ("-", "--", "-.", ":", (0, (1, 2)))


def variables(colours: dict[str, str]) -> str:
    """Return CSS custom properties: --name:value;"""
    return "".join(f"--{name}:{value};" for name, value in colours.items())
