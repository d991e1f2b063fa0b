"""The search page: a Starlette app over an index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .server import ServeSettings, make_app, serve

__all__ = [
    "ServeSettings",
    "make_app",
    "serve",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "server": "ServeSettings make_app serve",
    },
)
