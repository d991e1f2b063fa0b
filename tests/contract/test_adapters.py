"""Contract of registered adapters; runs for every registered adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.registry import ADAPTERS
from tests.support.features import make_pairs

CASES = [(name, dims) for name in sorted(ADAPTERS) for dims in ((6, 6), (9, 5), (5, 9)) if name != "class_names"]


@pytest.mark.parametrize(("name", "dims"), [*CASES, ("class_names", (1280, 5))])  # for one encoder only
def test_one_space_of_unit_rows_saved_and_loaded_to_the_bit(name: str, dims: tuple[int, int], tmp_path: Path) -> None:
    f = make_pairs(40, dims)
    model = Aligner.fit_start(f, build_config(TrainConfig, {"image_adapter": name})).eval()
    image, text = model(f.image, f.text)
    assert image.shape == text.shape == (40, model.config.dim)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(40))
    model.save(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    again = Aligner.load(tmp_path / "model")
    assert torch.equal(again.encode_image(f.image), image)
    assert torch.equal(again.encode_text(f.text), text)


def test_identity_leaves_an_index_as_it_is() -> None:
    f = make_pairs(40, (9, 5))
    model = Aligner.fit_start(f, build_config(TrainConfig, {"image_adapter": "identity"}))
    assert not list(model.image_adapter.parameters())
    assert torch.equal(model.encode_image(f.image), torch.nn.functional.normalize(f.image, dim=1))
    assert model.config.dim == 9


def test_a_new_mlp_computes_its_start_and_centred_features_where_dimensions_agree() -> None:
    f = make_pairs(40, (6, 6))
    model = Aligner.fit_start(f, build_config(TrainConfig, {"start": {"kind": "identity"}}))
    unit = torch.nn.functional.normalize(f.image, dim=1)
    torch.testing.assert_close(model.image_adapter(f.image), unit - unit.mean(dim=0), atol=1e-6, rtol=0)


def test_damaged_and_foreign_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    f = make_pairs(40, (6, 6))
    Aligner.fit_start(f, TrainConfig()).save(tmp_path / "m")
    with pytest.raises(InputError, match=r"config\.json"):
        Aligner.load(tmp_path)
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        Aligner.load(tmp_path / "m")
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors"):
        Aligner.load(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"format_version": 99}')
    with pytest.raises(InputError, match=r"format.*99"):
        Aligner.load(tmp_path / "m")
