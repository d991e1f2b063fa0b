"""Embedding interface of LangChain and LlamaIndex for aligned models; neither package is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from csaligner.adapters.aligner import Aligner
from csaligner.model import AlignedModel
from csaligner.types import Encoder

Vectors = list[list[float]]


def mapped(rows: Vectors, transform: Callable[[Any], Any] | None) -> Vectors:
    """Return transform(rows) as lists; without a transform, or rows, the rows themselves."""
    if transform is None or not rows:
        return rows
    return cast(Vectors, np.asarray(transform(np.asarray(rows, dtype=np.float32))).tolist())


class AlignedEmbeddings:
    """Embeds texts and image files as unit vectors in the aligned space.

    LangChain: embed_documents, embed_query, embed_image. LlamaIndex: get_text_embedding, get_text_embedding_batch,
    get_query_embedding, get_image_embedding, get_image_embedding_batch. Images are paths; without an image encoder,
    image methods raise InputError.
    """

    def __init__(
        self, model: AlignedModel | Aligner, text: Encoder | None = None, image: Encoder | None = None
    ) -> None:
        """model: an AlignedModel, or an aligner with the encoders `text` and `image`.

        Raises InputError for an encoder that the aligner was not trained with."""
        given = [encoder for encoder in (text, image) if encoder is not None]
        self._model = model if isinstance(model, AlignedModel) else AlignedModel(model, given)

    @classmethod
    def open(cls, run: Path | str) -> AlignedEmbeddings:
        """Open a model and both encoders.

        run: see AlignedModel.open. Raises InputError if an encoder is missing, for example for a run on imported
        features."""
        model = AlignedModel.open(run)
        for side in ("image", "text"):
            model.encoder(side)
        return cls(model)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        return cast(Vectors, self._model.encode_text(texts).tolist())

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    def embed_image(self, uris: Sequence[Path | str]) -> Vectors:
        return cast(Vectors, self._model.encode_image(uris).tolist())

    def get_text_embedding(self, text: str) -> list[float]:
        return self.embed_query(text)

    def get_text_embedding_batch(self, texts: Sequence[str]) -> Vectors:
        return self.embed_documents(texts)

    def get_query_embedding(self, query: str) -> list[float]:
        return self.embed_query(query)

    def get_image_embedding(self, path: Path | str) -> list[float]:
        return self.embed_image([path])[0]

    def get_image_embedding_batch(self, paths: Sequence[Path | str]) -> Vectors:
        return self.embed_image(paths)
