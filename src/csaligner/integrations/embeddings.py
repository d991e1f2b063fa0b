"""An aligned model behind the method names that LangChain and LlamaIndex call; neither package is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.encoders import open_encoder
from csaligner.pipeline import encoders_of, model_folder
from csaligner.store.decode_workers import prepared
from csaligner.types import Encoder, Modality

Vectors = list[list[float]]


class AlignedEmbeddings:
    """Texts and picture files to rows of length 1 in the aligned space.

    LangChain: embed_documents, embed_query, embed_image, which its vector stores call. LlamaIndex: get_text_embedding,
    get_text_embedding_batch, get_query_embedding, get_image_embedding, get_image_embedding_batch. Pictures are paths;
    without an image encoder they are an InputError.
    """

    def __init__(self, model: Aligner, text: Encoder, image: Encoder | None = None) -> None:
        self._model = model.eval()
        self._encoders: dict[Modality, Encoder] = {"text": text}
        if image is not None:
            self._encoders["image"] = image
        for side, encoder in self._encoders.items():
            wanted = getattr(model.config, f"{side}_encoder")
            if wanted is not None and encoder.info.fingerprint != wanted:
                raise InputError(
                    f"encoder: the aligner was trained on {side}s of the encoder {wanted}, "
                    f"{encoder.info.id} is {encoder.info.fingerprint}"
                )

    @classmethod
    def open(cls, run: Path | str) -> AlignedEmbeddings:
        """The aligner of a finished run with the encoders of its store; one that took features alone has no place
        here. Raises InputError."""
        run = Path(run)
        infos = encoders_of(run)
        if len(infos) < 2:
            raise InputError(f"embeddings: the store of {run} is gone or lacks a side; name the encoders yourself")
        text, image = open_encoder(infos["text"].id, "text"), open_encoder(infos["image"].id, "image")
        return cls(Aligner.load(model_folder(run)), text, image)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        return self._rows("text", list(texts))

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    def embed_image(self, uris: Sequence[Path | str]) -> Vectors:
        return self._rows("image", [Path(uri) for uri in uris])

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

    def _rows(self, side: Modality, items: Sequence[str] | Sequence[Path]) -> Vectors:
        if side not in self._encoders:
            raise InputError(f"embeddings: no {side} encoder was given; pass one")
        encoder = self._encoders[side]
        ready = [prepared(encoder, item, side) for item in items]
        if not ready:
            return []
        encode = self._model.encode_text if side == "text" else self._model.encode_image
        with torch.inference_mode():
            stacked = torch.stack(ready) if isinstance(ready[0], Tensor) else ready
            rows: Vectors = encode(encoder.encode(stacked)).tolist()  # type: ignore[arg-type]  # a tensor of its rows
        return rows
