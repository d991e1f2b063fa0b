"""LangChain embeddings whose queries pass through an aligner; needs langchain-core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.extras import install_command

from .embeddings import Vectors, mapped

try:
    from langchain_core.embeddings import Embeddings
except ImportError:
    raise InputError(f"LangChainEmbeddings needs langchain-core; {install_command('langchain')}") from None


class LangChainEmbeddings(Embeddings):  # type: ignore[misc]  # untyped base
    """An `Embeddings` of LangChain for an index whose vectors stay as they are.

        LangChainEmbeddings(OpenAIEmbeddings(...), CSAligner.load("aligner").transform_text)
        LangChainEmbeddings(AlignedEmbeddings.open("runs/text-side"))

    model: embeds queries: an `Embeddings` of LangChain, or AlignedEmbeddings, which needs no transform.
    transform: maps rows (N, d) of `model` to vectors of the index (N, e); None: unchanged.
    documents: embeds documents that are added to the index, without the transform: the model that made its vectors.
    None: documents are embedded like queries.
    """

    def __init__(
        self, model: Any, transform: Callable[[Any], Any] | None = None, documents: Embeddings | None = None
    ) -> None:
        self._model, self._transform, self._documents = model, transform, documents

    def embed_query(self, text: str) -> list[float]:
        return mapped([self._model.embed_query(text)], self._transform)[0]

    def embed_documents(self, texts: list[str]) -> Vectors:
        if self._documents is not None:
            return list(self._documents.embed_documents(texts))
        return mapped(self._model.embed_documents(texts), self._transform)

    def embed_image(self, uris: Sequence[Path | str]) -> Vectors:
        """Embed image files with `documents`, or else with `model`, as they are. Raises InputError if it cannot."""
        model = self._model if self._documents is None else self._documents
        if not hasattr(model, "embed_image"):
            raise InputError(f"embed_image: {type(model).__name__} does not embed images; give AlignedEmbeddings")
        return list(model.embed_image(uris))
