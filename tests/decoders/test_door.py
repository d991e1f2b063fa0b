"""open_decoder: contracts, seeds and one-line errors of decoder folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from csaligner.checks import InputError
from csaligner.decoders import decoder as door
from csaligner.decoders import folder
from csaligner.decoders.contract import Contract, write_contract
from csaligner.decoders.decoder import Sampling, open_decoder, read_contract

DIM = 12
FAST = Sampling(n=2, steps=2, guidance=3)


def embeddings(n: int = 2) -> torch.Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(0)) * 4


def same(a: Image.Image, b: Image.Image) -> bool:
    """Compare images up to rounding differences between batch sizes."""
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max()) <= 1


@pytest.mark.parametrize(("name", "side"), [("kandinsky", 8), ("karlo", 16), ("stable_unclip", 8)])
def test_pictures_depend_on_embedding_and_seed_and_on_nothing_else(
    name: str, side: int, request: pytest.FixtureRequest
) -> None:
    decoder = open_decoder(str(request.getfixturevalue(name)))
    negative = torch.zeros(DIM) if decoder.contract.takes_negative else None
    x = embeddings()
    found = decoder.decode(x, FAST, negative)
    assert [len(row) for row in found] == [2, 2]
    assert found[0][0].size == (side, side) == (decoder.side, decoder.side)
    assert same(decoder.decode(x[1:], FAST, negative)[0][1], found[1][1])
    second = Sampling(n=1, seed=1, steps=2, guidance=3)
    assert same(decoder.decode(x[:1], second, negative)[0][0], found[0][1])
    assert not same(found[0][0], found[0][1])
    assert not same(found[0][0], found[1][0])


def test_contracts_are_read_from_the_folders(kandinsky: Path, karlo: Path, stable_unclip: Path) -> None:
    assert read_contract(str(kandinsky)).dim == read_contract(str(karlo)).dim == DIM
    assert read_contract(str(kandinsky)).takes_negative
    assert not read_contract(str(karlo)).takes_negative
    found = read_contract(str(stable_unclip))
    assert found.norm == pytest.approx((DIM * (0.25 + 1)) ** 0.5)
    assert found.mean is not None
    torch.testing.assert_close(found.mean, torch.full((DIM,), 0.5))


def test_a_contract_beside_the_parts_is_taken_up(kandinsky: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    shutil.copytree(kandinsky, copy)
    negative = torch.arange(DIM).float()
    write_contract(Contract("mine", DIM, encoder="abc", norm=4.0, negative=negative), copy)
    decoder = open_decoder(str(copy))
    assert (decoder.contract.norm, decoder.contract.encoder) == (4.0, "abc")
    x = embeddings(1)
    assert same(decoder.decode(x, FAST)[0][0], decoder.decode(x, FAST, negative)[0][0])
    with pytest.raises(InputError, match=r"abc.*xyz"):
        decoder.contract.check_source(DIM, "xyz")


def test_bad_embeddings_are_one_line(kandinsky: Path, karlo: Path) -> None:
    decoder = open_decoder(str(kandinsky))
    with pytest.raises(InputError, match=r"12\b.*\b7\b"):
        decoder.decode(torch.randn(1, 7), FAST)
    with pytest.raises(InputError, match=r"normalised.*raw"):
        decoder.decode(torch.nn.functional.normalize(embeddings(), dim=1), FAST, torch.zeros(DIM))
    with pytest.raises(InputError, match="NaN"):
        decoder.decode(embeddings() * float("nan"), FAST, torch.zeros(DIM))
    with pytest.raises(InputError, match=r"^negative"):
        decoder.decode(embeddings(), FAST)
    with pytest.raises(InputError, match=r"n and steps.*0.*2"):
        decoder.decode(embeddings(), Sampling(n=0, steps=2), torch.zeros(DIM))
    with pytest.raises(InputError, match="negative"):
        open_decoder(str(karlo)).decode(embeddings(), FAST, torch.zeros(DIM))


def test_damaged_folders_are_one_line_before_anything_is_loaded(kandinsky: Path, tmp_path: Path) -> None:
    copy = tmp_path / "k"
    shutil.copytree(kandinsky, copy)
    weights = copy / "movq" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"movq.*safetensors"):
        open_decoder(str(copy))
    shutil.rmtree(copy / "movq")
    with pytest.raises(InputError, match="'movq'"):
        read_contract(str(copy))
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(InputError, match="StableDiffusionPipeline"):
        read_contract(str(copy))
    (copy / "model_index.json").unlink()
    with pytest.raises(InputError, match=r"model_index\.json"):
        read_contract(str(copy))
    with pytest.raises(InputError, match="'micro'"):
        read_contract("mikro")


def test_too_little_memory_says_how_much_it_takes(kandinsky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "free_memory", lambda device: 1000)
    with pytest.raises(InputError, match="GiB"):
        open_decoder(str(kandinsky))
    assert (folder.free_memory(torch.device("cpu")) or 1) > 0


def test_a_name_on_the_hub_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="comes with diffusers")

    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(InputError, match="kandinsky-2-2-decoder"):
        read_contract("kandinsky-2.2")
