"""Integrations with other libraries: open_clip, sentence-transformers, LangChain, LlamaIndex and mteb."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .embeddings import AlignedEmbeddings
    from .langchain import LangChainEmbeddings
    from .llama_index import LlamaIndexEmbedding
    from .mteb import AlignedEncoder
    from .open_clip import CSAlignerClipLoss
    from .sentence_transformers import CSAlignerEmbeddingLoss

__all__ = [
    "AlignedEmbeddings",
    "AlignedEncoder",
    "CSAlignerClipLoss",
    "CSAlignerEmbeddingLoss",
    "LangChainEmbeddings",
    "LlamaIndexEmbedding",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "embeddings": "AlignedEmbeddings",
        "langchain": "LangChainEmbeddings",
        "llama_index": "LlamaIndexEmbedding",
        "mteb": "AlignedEncoder",
        "open_clip": "CSAlignerClipLoss",
        "sentence_transformers": "CSAlignerEmbeddingLoss",
    },
)
