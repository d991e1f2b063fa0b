"""LlamaIndex embeddings whose queries pass through an aligner; needs llama-index-core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from csaligner.checks import InputError
from csaligner.extras import install_command

from .embeddings import Vectors, mapped

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
except ImportError:
    raise InputError(f"LlamaIndexEmbedding needs llama-index-core; {install_command('llama-index')}") from None


class LlamaIndexEmbedding(BaseEmbedding):  # type: ignore[misc]  # untyped base
    """A `BaseEmbedding` of LlamaIndex for an index whose vectors stay as they are.

        LlamaIndexEmbedding(OpenAIEmbedding(...), CSAligner.load("aligner").transform_text)
        LlamaIndexEmbedding(AlignedEmbeddings.open("runs/text-side"))

    model: embeds queries: a `BaseEmbedding`, or AlignedEmbeddings, which needs no transform.
    transform: maps rows (N, d) of `model` to vectors of the index (N, e); None: unchanged.
    documents: embeds texts that are added to the index, without the transform: the model that made its vectors. None:
    they are embedded like queries.
    """

    _model: Any = PrivateAttr()
    _transform: Any = PrivateAttr()
    _documents: Any = PrivateAttr()

    def __init__(
        self,
        model: Any,
        transform: Callable[[Any], Any] | None = None,
        documents: BaseEmbedding | None = None,
        **settings: Any,
    ) -> None:
        """settings: of BaseEmbedding, for example embed_batch_size."""
        super().__init__(**{"model_name": getattr(model, "model_name", type(model).__name__)} | settings)
        self._model, self._transform, self._documents = model, transform, documents

    @classmethod
    def class_name(cls) -> str:
        return "LlamaIndexEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return mapped([self._model.get_query_embedding(query)], self._transform)[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        if not hasattr(self._model, "aget_query_embedding"):
            return self._get_query_embedding(query)
        return mapped([await self._model.aget_query_embedding(query)], self._transform)[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> Vectors:
        if self._documents is not None:
            return list(self._documents.get_text_embedding_batch(texts))
        return mapped(self._model.get_text_embedding_batch(texts), self._transform)
