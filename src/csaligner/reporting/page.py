"""Rendering of the Jinja2 templates: self-contained HTML pages with escaped input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from csaligner.files import write_text

from .palette import DARK, LIGHT, METHOD_COLOURS, variables
from .summary import DASH, format_spread, format_value
from .tables import heading_unit
from .thumbnails import data_uri


@dataclass(frozen=True)
class Panel:
    """A figure with title and caption."""

    title: str
    svg: Markup
    about: str = ""


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a page. Strings are escaped; Markup (figures) is not. Raises for missing values."""
    return str(_environment().get_template(template).render(values))


def write_page(template: str, values: Mapping[str, Any], path: Path) -> None:
    """Write the page (UTF-8, atomically)."""
    write_text(path, render(template, values))


def module(template: str) -> Any:
    """Return the macros of a template as functions that return Markup."""
    return _environment().get_template(template).module


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("csaligner.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "dash": DASH,
        "data_uri": data_uri,
        "spread": format_spread,
        "unit": heading_unit,
        "value": format_value,
    }
    colours = {"light": Markup(variables(LIGHT)), "dark": Markup(variables(DARK)), "methods": METHOD_COLOURS}
    environment.globals["style"] = Markup(environment.get_template("style.css").render(colours))
    return environment
