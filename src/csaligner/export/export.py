"""Export of adapters for use without csaligner: safetensors, ONNX, NumPy arrays, SentenceTransformer folders."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.hub import ModelCard
from csaligner.adapters.identity import IdentityAdapter
from csaligner.adapters.linear import LinearAdapter
from csaligner.checks import CSAlignerError, InputError, check_choice
from csaligner.extras import install_command
from csaligner.files import write_folder, write_json, write_text
from csaligner.integrity import write_safetensors
from csaligner.model import AlignedModel
from csaligner.reporting.tables import read_results_json
from csaligner.run_folder import OURS, RESULTS, describe, read_record
from csaligner.store.store import Store
from csaligner.wording import images_and_captions

FORMATS = ("safetensors", "onnx", "npz", "sentence-transformers", "hub")
SIDES = ("image", "text")
ONNX_TOLERANCE = 1e-5

NPZ_README = """# Adapters as arrays

Each .npz contains mean (d_in,), map (d_in, d_out) and offset (d_out,){more}. Map encoder features x (N, d_in) to unit
vectors in the aligned space:

    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = (x - mean) @ map + offset{line}; y /= np.linalg.norm(y, axis=1, keepdims=True)
{identity}
"""


def export(run: Path, out: Path, format: str, licence: str = "unknown") -> tuple[Path, ...]:
    """Export the adapters of a finished run to the new folder `out`; returns the files and folders written there.

    format: safetensors (weights of each adapter by name), onnx (features -> unit rows, any batch size; checked with
    onnxruntime to 1e-5), npz (arrays of linear adapters), sentence-transformers (text encoder and adapter, and the
    image encoder and adapter if the encoder is a transformers model, in one folder for SentenceTransformer(out),
    without csaligner), hub (a folder for AlignedModel.open with LoRA and a model card: metrics, data, licence).
    licence: SPDX identifier for the model card.

    Raises InputError for an unknown format, an existing `out`, an unfinished run, an adapter that the format does not
    support, and a package that is not installed.
    """
    check_choice("format", format, FORMATS)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out: {out} exists; choose another folder or delete it")
    record = read_record(run)
    model = AlignedModel.open(run)
    if model.lora and format not in {"sentence-transformers", "hub"}:
        raise InputError(
            f"format: {format} contains adapters only, this run has LoRA in its {' and '.join(model.lora)} encoder; "
            "use sentence-transformers or hub"
        )
    if model.aligner.reads_states and format not in {"safetensors", "hub"}:
        raise InputError(
            f"format: {format} maps features, this run has a prior that reads hidden states; use safetensors or hub"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    if format == "sentence-transformers":
        _sentence_transformer(model, out)
    elif format == "hub":
        model.save(out, model_card(run, record, model, licence).text())
    else:
        export_aligner(model.aligner, out, format)
    return tuple(sorted(out.iterdir()))


def _sentence_transformer(model: AlignedModel, out: Path) -> None:
    """Export texts, and images if sentence-transformers supports the encoder; LoRA is merged into the weights."""
    from .sentence_transformers import holds_images, save_sentence_transformer

    model.merge_lora()
    image = model.encoder("image") if model.info("image").id.startswith("hf:") else None
    if image is not None and not holds_images(image):
        image = None
    save_sentence_transformer(model.aligner, model.encoder("text"), out, image)


def export_aligner(model: Aligner, out: Path, format: str) -> None:
    """Export a model in memory as safetensors, onnx or npz."""
    writers = {"safetensors": _safetensors, "onnx": _onnx, "npz": _npz}
    check_choice("format", format, writers)
    write_folder(out, lambda folder: writers[format](model.eval(), folder))


def linear_arrays(model: Aligner, side: str) -> dict[str, NDArray[np.float32]] | None:
    """Return mean, map and offset (and spread) of a linear adapter, None for identity. Raises InputError for other
    adapters."""
    adapter = _adapter(model, side)
    if isinstance(adapter, IdentityAdapter):
        return None
    if not isinstance(adapter, LinearAdapter):
        name = getattr(model.config, f"{side}_adapter").name
        raise InputError(
            f"format: npz supports linear adapters, the {side} adapter is {name}; use onnx, or train with "
            f"{side}_adapter=linear"
        )
    arrays = {name: getattr(adapter, name).detach().numpy() for name in ("mean", "map", "offset")}
    if adapter.log_spread is not None:
        arrays["spread"] = adapter.log_spread.detach().exp().numpy()
    return arrays


class _Side(nn.Module):
    """Adapter and normalisation of one modality as a module: features -> unit rows."""

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
    spread = any(found is not None and "spread" in found for found in arrays.values())
    identity = [side for side, found in arrays.items() if found is None]
    text = NPZ_README.format(
        more=", and a scalar spread" if spread else "",
        line="",
        identity=f"\nThere is no file for {identity[0]} features: they are only scaled to unit length.\n"
        if identity
        else "",
    )
    if spread:
        text = text.replace(
            "y = (x - mean) @ map + offset;",
            "u = (x - mean) @ map; y = spread * u / np.linalg.norm(u, axis=1, keepdims=True) + offset;",
        )
    write_text(folder / "README.md", text)


def _onnx(model: Aligner, folder: Path) -> None:
    require_onnx()
    for side in SIDES:
        dim = model.config.dim_image if side == "image" else model.config.dim_text
        module, path = _Side(_adapter(model, side)).eval(), folder / f"{side}.onnx"
        example = torch.randn(3, dim, generator=torch.Generator().manual_seed(0))
        with _quiet_exporter():
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


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's remarks on torchvision and on its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


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


def require_onnx() -> None:
    """Raise InputError with the pip command if a package for the format onnx is missing."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputError(f"format: onnx needs {', '.join(missing)}; {install_command('export')}")


def _name(model: Aligner, side: str) -> str:
    return str(getattr(model.config, f"{side}_adapter").name)


def model_card(run: Path, record: Mapping[str, Any], model: AlignedModel, licence: str) -> ModelCard:
    """Create a model card from run.json and results.json; data of runs of csaligner 0.1 is read from their store."""
    data = record.get("data") or describe(Store.open(Path(record["store"])))
    metrics, split = _metrics(run, record)
    words = f"{data['name']}: {images_and_captions(data['images'], data['captions'])} (train split)."
    names = (model.info("image").id, model.info("text").id)
    return ModelCard(words, licence, names, metrics, f"the {split} split of the same data", data["attribution"])


def _metrics(run: Path, record: Mapping[str, Any]) -> tuple[Mapping[str, float], str]:
    """Return metrics of the trained model and their split, from results.json, else validation metrics of run.json."""
    path = run / RESULTS
    ours = [result for result in read_results_json(path) if result.name == OURS] if path.is_file() else []
    if not ours:
        return record.get("metrics", {}), "val"
    return {k: v for k, v in ours[-1].metrics.items() if math.isfinite(v)}, ours[-1].split
