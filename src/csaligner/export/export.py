"""Adapters for programs without csaligner: safetensors, ONNX, plain NumPy arrays, a SentenceTransformer folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.hub import ModelCard
from csaligner.adapters.identity import IdentityAdapter
from csaligner.adapters.linear import LinearAdapter
from csaligner.adapters.lora import FOLDERS, LoRAAligner
from csaligner.checks import CSAlignerError, InputError, check_choice
from csaligner.config import TrainConfig
from csaligner.encoders import open_encoder
from csaligner.files import write_folder, write_json, write_text
from csaligner.integrity import write_safetensors
from csaligner.pipeline import OURS, RESULTS, model_folder, read_config, read_record
from csaligner.reporting.tables import read_results_json
from csaligner.store.store import Store
from csaligner.training.encoder_batches import TrainableStore
from csaligner.types import Encoder

FORMATS = ("safetensors", "onnx", "npz", "sentence-transformers", "hub")
SIDES = ("image", "text")
ONNX_TOLERANCE = 1e-5

NPZ_README = """# Adapters as arrays

Each .npz holds mean (d_in,), map (d_in, d_out) and offset (d_out,){more}. Features x (N, d_in), as the encoder gives
them, become rows of length 1 in the aligned space:

    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = (x - mean) @ map + offset{line}; y /= np.linalg.norm(y, axis=1, keepdims=True)
{identity}
"""


@dataclass(frozen=True)
class RunToExport:
    """A finished run. text: its text encoder, opened when it is needed; changed: sides whose encoder has LoRA."""

    model: Aligner
    store: Path
    folder: Path
    config: TrainConfig

    @classmethod
    def open(cls, run: Path) -> RunToExport:
        """Raises InputError where `run` is no finished run."""
        record, folder = read_record(run), model_folder(run)
        return cls(Aligner.load(folder), Path(record["store"]), folder, read_config(run))

    @property
    def changed(self) -> tuple[str, ...]:
        return tuple(side for side, name in FOLDERS.items() if (self.folder / name).is_dir())

    def encoders(self) -> tuple[Encoder, Encoder | None]:
        """The text encoder, and the image encoder where sentence-transformers has a module for it; LoRA merged."""
        from .sentence_transformers import holds_images

        store = Store.open(self.store)
        found: dict[str, Encoder] = {}
        if self.changed:
            assert self.config.lora is not None
            tuned = TrainableStore.open(store, self.config.lora)
            LoRAAligner.load(self.folder, tuned.towers).merge()
            found |= {side: tuned.encoders[side] for side in self.changed}  # type: ignore[index]
        if "text" not in found:
            found["text"] = open_encoder(store.encoders["text"].id, "text")
        image = store.encoders["image"].id
        if "image" not in found and image.startswith("hf:"):
            found["image"] = open_encoder(image, "image")
        image_encoder = found.get("image")
        return found["text"], image_encoder if image_encoder and holds_images(image_encoder) else None


def export(run: Path, out: Path, format: str, licence: str = "unknown") -> tuple[Path, ...]:
    """Write the adapters of a finished run into the new folder `out`; returns the files and folders written there.

    format: safetensors (the weights of each adapter by name), onnx (features -> unit rows, any batch size; checked with
    onnxruntime to 1e-5), npz (linear and identity adapters: three arrays), sentence-transformers (encoder and adapter
    of the text side, and of the image side where its encoder is a transformers model, in one folder that
    SentenceTransformer(out) loads without csaligner), hub (what Aligner.from_pretrained reads, with a model card:
    metrics, data, licence). licence: for the card, SPDX.

    Raises InputError: an unknown format, `out` exists, no finished run, an adapter that the format cannot hold, a
    package that is not installed.
    """
    check_choice("format", format, FORMATS)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out: {out} exists; choose another folder or delete it")
    found = RunToExport.open(run)
    if found.changed and format != "sentence-transformers":
        raise InputError(
            f"format: {format} holds adapters alone, and this run changed its {' and '.join(found.changed)} encoder "
            "(LoRA); use sentence-transformers for the text side"
        )
    if format == "sentence-transformers":
        from .sentence_transformers import save_sentence_transformer

        text, image = found.encoders()
        save_sentence_transformer(found.model, text, out, image)
    elif format == "hub":
        out.parent.mkdir(parents=True, exist_ok=True)
        found.model.save_pretrained(out, model_card(run, found, licence))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        export_aligner(found.model, out, format)
    return tuple(sorted(out.iterdir()))


def export_aligner(model: Aligner, out: Path, format: str) -> None:
    """As export, for a model in memory and one of the formats safetensors, onnx and npz."""
    writers = {"safetensors": _safetensors, "onnx": _onnx, "npz": _npz}
    check_choice("format", format, writers)
    write_folder(out, lambda folder: writers[format](model.eval(), folder))


def linear_arrays(model: Aligner, side: str) -> dict[str, NDArray[np.float32]] | None:
    """mean, map and offset (and spread) of a linear adapter, None for identity. Raises InputError for another kind."""
    adapter = _adapter(model, side)
    if isinstance(adapter, IdentityAdapter):
        return None
    if not isinstance(adapter, LinearAdapter):
        name = getattr(model.config, f"{side}_adapter").name
        raise InputError(
            f"format: npz holds linear adapters, the {side} adapter is {name}; use onnx, or train {side}_adapter=linear"
        )
    arrays = {name: getattr(adapter, name).detach().numpy() for name in ("mean", "map", "offset")}
    if adapter.log_spread is not None:
        arrays["spread"] = adapter.log_spread.detach().exp().numpy()
    return arrays


class _Side(nn.Module):
    """One side as a graph: features -> rows of length 1."""

    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, features: Tensor) -> Tensor:
        return normalize(self.adapter(features), dim=1)


def _adapter(model: Aligner, side: str) -> nn.Module:
    return model.image_adapter if side == "image" else model.text_adapter


def _safetensors(model: Aligner, folder: Path) -> None:

    for side in SIDES:
        state = {k: v.contiguous() for k, v in _adapter(model, side).state_dict().items()}
        if state:
            write_safetensors(state, folder / f"{side}.safetensors", {"adapter": _name(model, side)})
    write_json(folder / "config.json", model.config.model_dump(mode="json"))


def _npz(model: Aligner, folder: Path) -> None:
    arrays = {side: linear_arrays(model, side) for side in SIDES}
    for side, found in arrays.items():
        if found is not None:
            np.savez(folder / f"{side}.npz", **found)  # type: ignore[arg-type]
    landed = any(found is not None and "spread" in found for found in arrays.values())
    untouched = [side for side, found in arrays.items() if found is None]
    text = NPZ_README.format(
        more=", and a number spread" if landed else "",
        line="",
        identity=f"\nThe {untouched[0]} side has no file: its rows are only divided by their length.\n"
        if untouched
        else "",
    )
    if landed:
        text = text.replace(
            "y = (x - mean) @ map + offset;",
            "u = (x - mean) @ map; y = spread * u / np.linalg.norm(u, axis=1, keepdims=True) + offset;",
        )
    write_text(folder / "README.md", text)


def _onnx(model: Aligner, folder: Path) -> None:
    _require_onnx()
    for side in SIDES:
        dim = model.config.dim_image if side == "image" else model.config.dim_text
        module, path = _Side(_adapter(model, side)).eval(), folder / f"{side}.onnx"
        example = torch.randn(3, dim, generator=torch.Generator().manual_seed(0))
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=["features"],
            output_names=["embeddings"],
            dynamic_shapes={"features": {0: torch.export.Dim("rows")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        _check_onnx(module, path, dim)


def _check_onnx(module: nn.Module, path: Path, dim: int) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for rows in (1, 2, 17):
        x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            wanted = module(x).numpy()
        (found,) = session.run(None, {"features": x.numpy()})
        error = float(np.abs(found - wanted).max())
        if found.shape != wanted.shape or not error < ONNX_TOLERANCE:
            raise CSAlignerError(f"onnx: {path.name} differs by {error:.1e} for {rows} rows; this is a bug, report it")


def _require_onnx() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"format: onnx needs {', '.join(missing)}; pip install 'csaligner[export]'")


def _name(model: Aligner, side: str) -> str:
    return str(getattr(model.config, f"{side}_adapter").name)


def model_card(run: Path, found: RunToExport, licence: str) -> ModelCard:
    """Filled in from the run's store and its results.json."""
    store = Store.open(found.store)
    images, captions = store.counts.get("train", (0, 0))
    encoders = store.encoders
    metrics, split = _metrics(run)
    data = f"{store.dataset}: {images} images with {captions} captions (train split)."
    names = (encoders["image"].id, encoders["text"].id)
    return ModelCard(data, licence, names, metrics, f"the {split} split of the same data", store.attribution)


def _metrics(run: Path) -> tuple[dict[str, float], str]:
    """Metrics of the trained model and their split, from the run's results.json; none where it was not evaluated."""
    path = run / RESULTS
    ours = [result for result in read_results_json(path) if result.name == OURS] if path.is_file() else []
    if not ours:
        return {}, "test"
    return {k: v for k, v in ours[-1].metrics.items() if math.isfinite(v)}, ours[-1].split
