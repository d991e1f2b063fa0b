"""Decoders from image embeddings to images: unCLIP pipelines and the bundled micro decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .contract import Contract
    from .decoder import Decoder, open_decoder
    from .pipeline_adapter import PipelineAdapter, Sampling

__all__ = [
    "Contract",
    "Decoder",
    "PipelineAdapter",
    "Sampling",
    "open_decoder",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "contract": "Contract",
        "decoder": "Decoder open_decoder",
        "pipeline_adapter": "PipelineAdapter Sampling",
    },
)
