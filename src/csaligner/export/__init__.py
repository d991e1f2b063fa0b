"""Export of adapters to other file formats: safetensors, ONNX, NumPy, sentence-transformers, hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .export import export_aligner
    from .sentence_transformers import save_sentence_transformer

__all__ = [
    "export_aligner",
    "save_sentence_transformer",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "export": "export_aligner",
        "sentence_transformers": "save_sentence_transformer",
    },
)
