"""Text-to-image generation: from prompts through the aligned space to a decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .generate import GenerationRequest, save_pictures
    from .grid import save_grid

__all__ = [
    "GenerationRequest",
    "save_grid",
    "save_pictures",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "generate": "GenerationRequest save_pictures",
        "grid": "save_grid",
    },
)
