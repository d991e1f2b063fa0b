"""Feature stores: features of images and captions on disk, with the fingerprints of their encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .embed import ExtractSettings
    from .read_features import load_features
    from .store import Store, write_store

__all__ = [
    "ExtractSettings",
    "Store",
    "load_features",
    "write_store",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "embed": "ExtractSettings",
        "read_features": "load_features",
        "store": "Store write_store",
    },
)
