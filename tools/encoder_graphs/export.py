"""Export the bundled encoders as ONNX graphs without weights, and probes with which an installation checks them.

    python tools/encoder_graphs/export.py src/csaligner/assets/encoder-graphs

Needs the extras `bundled` and `export`. Writes NAME.onnx, whose weights are declared as external and are given by
encoders/onnx_graph.py when a session is created, and NAME-probe.safetensors: inputs, and the outputs of torch in
double precision. The metadata names the weights (SHA-256) for which the probe was made. nonsense.safetensors contains
the features of the queries of search/weak.py by the fingerprint of each encoder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER, open_encoder
from csaligner.encoders.efficientnet import MEAN, SCALE, fold_batch_norms, load_net, weights_file
from csaligner.encoders.minilm import model_folder
from csaligner.encoders.text import masked_mean
from csaligner.files import sha256_of
from csaligner.search.weak import nonsense_images, nonsense_texts

TEXTS = ("a red apple on a table", "ein sehr langer Satz über Füße " * 4)
CONSTANT_BYTES = 8192  # larger initializers must be weights with a name


class ImageGraph(nn.Module):
    """(B, 3, 224, 224) uint8 -> pooled features (B, 1280), last feature map (B, 1280, 7, 7)."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.net.extract_features((pixels.to(self.net._conv_stem.weight.dtype) - MEAN) / SCALE)
        return maps.mean((2, 3)), maps


class TextGraph(nn.Module):
    """input_ids, attention_mask, token_type_ids (B, T) int64 -> their mean over the mask (B, 384), token states (B, T,
    384)."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        states: Tensor = self.net(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        return masked_mean(states, attention_mask), states


def image_graph(folder: Path) -> None:
    weights = weights_file()
    net = load_net(weights)
    pixels = (torch.arange(2 * 3 * 224 * 224) * 7919 % 65521 % 256).to(torch.uint8).view(2, 3, 224, 224)
    pixels[1] = torch.linspace(0, 255, 224).to(torch.uint8).expand(3, 224, 224)  # smooth, unlike the first
    with torch.inference_mode():
        pooled, _maps = ImageGraph(net.double())(pixels)
    graph = ImageGraph(fold_batch_norms(load_net(weights)))
    batch = {0: torch.export.Dim("batch")}
    names = _export(graph, {"pixels": pixels}, (batch,), ["pooled", "maps"], folder / "efficientnet-lite0.onnx")
    probe = {"pixels": pixels, "pooled": pooled}
    _save_probe(folder / "efficientnet-lite0-probe.safetensors", weights, names, probe)


def text_graph(folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    path = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    inputs = dict(tokenizer(list(TEXTS), padding=True, return_tensors="pt"))
    net = AutoModel.from_pretrained(path, local_files_only=True, attn_implementation="eager").eval()
    with torch.inference_mode():
        pooled, _ = TextGraph(net.double())(**inputs)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=512)
    shapes = ({0: batch, 1: tokens},) * 3
    graph = TextGraph(net.float().requires_grad_(False))
    order = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    names = _export(graph, order, shapes, ["pooled", "states"], folder / "minilm.onnx")
    _save_probe(folder / "minilm-probe.safetensors", path / "model.safetensors", names, inputs | {"pooled": pooled})


def _save_probe(path: Path, weights: Path, names: list[str], tensors: dict[str, Tensor]) -> None:
    ready = {k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    save_file(ready, path, metadata={"weights": sha256_of(weights), "names": " ".join(names)})


def _export(graph: nn.Module, inputs: dict[str, Tensor], shapes: Any, outputs: list[str], path: Path) -> list[str]:
    """Write the graph; return the names of its weights in the network."""
    program: Any = torch.onnx.export(
        graph.eval(),
        tuple(inputs.values()),
        dynamo=True,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=shapes,
        optimize=False,  # it would replace weights by their transposes, which have no name
        verbose=False,
    )
    model = program.model_proto
    found = _without_weights(model, {f"net.{name}" for name in graph.net.state_dict()})
    onnx.save(model, path)
    print(f"{path}: {path.stat().st_size:,} bytes, {len(model.graph.node)} nodes")
    return [name.removeprefix("net.") for name in found]


def _without_weights(model: Any, names: set[str]) -> list[str]:
    """Declare the named initializers as external data without a file, and remove everything that only people read;
    return the names of those in the graph."""
    for tensor in model.graph.initializer:
        if tensor.name not in names:
            assert tensor.ByteSize() < CONSTANT_BYTES, tensor.name
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value="given by the session")
    model.ClearField("metadata_props")
    del model.graph.value_info[:]
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return [tensor.name for tensor in model.graph.initializer if tensor.name in names]


def nonsense(folder: Path) -> None:
    """Write the features of the queries of nonsense by both encoders."""
    texts, images = open_encoder(TEXT_ENCODER), open_encoder(IMAGE_ENCODER)
    found = {
        texts.info.fingerprint: texts.encode(nonsense_texts()),
        images.info.fingerprint: images.encode([images.prepare(image) for image in nonsense_images()]),
    }
    save_file(found, folder / "nonsense.safetensors")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    image_graph(target)
    text_graph(target)
    nonsense(target)
