"""Search over a mixed index of images and texts: a LanceDB index with aligned, raw and centred vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .build import BuildSettings, add_features, build_index, delete
    from .calibration import Calibration
    from .cards import Card, search_cards
    from .index import Hit, Index, SearchOptions
    from .query import FusedQuery

__all__ = [
    "BuildSettings",
    "Calibration",
    "Card",
    "FusedQuery",
    "Hit",
    "Index",
    "SearchOptions",
    "add_features",
    "build_index",
    "delete",
    "search_cards",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "build": "BuildSettings add_features build_index delete",
        "calibration": "Calibration",
        "cards": "Card search_cards",
        "index": "Hit Index SearchOptions",
        "query": "FusedQuery",
    },
)
