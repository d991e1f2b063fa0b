"""The layout decoder: what its network does with an embedding, and its folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from csaligner.checks import InputError
from csaligner.decoders.contract import Contract
from csaligner.decoders.decoder import default_sampling, open_decoder
from csaligner.decoders.layout import KIND, LayoutPipeline, save_layout
from csaligner.decoders.layout_net import LayoutNet, LayoutSizes, sample
from csaligner.decoders.pipeline_adapter import Sampling
from csaligner.encoders.layout_features import BLOCKS, COLOUR_GRID, GRID, Features, Projection
from tests.support import layout as support

DIMS = {"pooled": 12, "map": 9, "fine": 7, "colour": 3 * COLOUR_GRID**2}
SMALL = LayoutSizes(channels=(8, 16, 32), modulation=16, local=8, pooled_map=2)


def random_projection(seed: int = 0) -> Projection:
    """All of the colour part, so that nothing of it is lost."""
    return support.random_projection(DIMS, seed)


def random_features(n: int) -> Features:
    maps = {"map": 40, "fine": 16}
    assert set(maps) == set(BLOCKS)
    drawn = {name: torch.randn(n, c, GRID, GRID) for name, c in maps.items()}
    colour = torch.rand(n, 3, COLOUR_GRID, COLOUR_GRID) * 2 - 1
    return Features(torch.randn(n, 1280), drawn["map"], drawn["fine"], colour)


def write_projection(path: Path, seed: int = 0) -> Path:
    return support.write_projection(path, DIMS, seed)


def test_projection_inverts_to_the_colours() -> None:
    found, projection = random_features(3), random_projection()
    rows = projection(found)
    assert rows.shape == (3, sum(DIMS.values()))
    assert torch.allclose(projection.images(rows)[-1], found.colour, atol=1e-4)


def test_projection_parts_keep_their_places() -> None:
    """A change of one part changes its columns and no others."""
    found, projection = random_features(2), random_projection()
    rows = projection(found)
    moved = projection(Features(found.pooled, found.map + 1 + found.map, found.fine, found.colour))
    changed = (rows - moved).abs().amax(dim=0) > 1e-4
    start = DIMS["pooled"]
    assert changed[start : start + DIMS["map"]].all()
    assert int(changed.sum()) == DIMS["map"]


def test_untrained_net_draws_the_colours_of_the_embedding() -> None:
    """Its last convolution begins at zero: the prediction is the draft, at every time and from every noise."""
    torch.manual_seed(0)
    projection = random_projection()
    net = LayoutNet(SMALL, projection).eval()
    rows = projection(random_features(2))
    with torch.inference_mode():
        drawn = net(torch.randn(2, 3, 64, 64), torch.tensor([1.0, 0.3]), rows, torch.zeros(2))
        assert torch.allclose(drawn, net.layout(rows)[1])


def test_sampling_guidance_leads_away_from_null() -> None:
    """With x' linear in the embedding, guidance g draws x'(null) + g (x'(e) - x'(null)); here null is not zero."""
    projection = random_projection()
    net = LayoutNet(SMALL, projection).eval()
    rows = projection(random_features(2)) * 0.1
    null, noise = rows[1], torch.zeros(2, 3, 64, 64)
    with torch.inference_mode():
        plain, away = (sample(net, e, noise, 3, 1.0) for e in (rows, null.expand_as(rows)))
        guided = sample(net, rows, noise, 3, 1.5, null=null)
    assert torch.allclose(guided, (away + 1.5 * (plain - away)).clamp(-1, 1), atol=1e-5)
    assert not torch.allclose(guided[0], plain[0], atol=1e-2)


def test_folder_round_trip_and_seeds(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = write_projection(tmp_path / "projection.safetensors")
    net = LayoutNet(SMALL, random_projection())
    torch.nn.init.normal_(net.out.weight, std=0.05)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(weight.half())  # as they are stored
    dim = sum(DIMS.values())
    save_layout(net, Contract("x", dim), tmp_path / "folder", "card", path)
    parts = {"net": tmp_path / "folder" / "net"}
    assert KIND.contract("x", parts).dim == dim
    loaded = KIND.load(tmp_path / "folder", {}, torch.float32)
    assert KIND.side(loaded) == 64
    rows = random_projection()(random_features(1)).repeat(2, 1)

    def draw(pipeline: LayoutPipeline, seeds: tuple[int, int]) -> list[np.ndarray]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = KIND.call(pipeline, rows, torch.zeros(dim), Sampling(steps=2, guidance=1.5), generators)
        return [np.asarray(image) for image in images]

    first = draw(LayoutPipeline(net), (0, 1))
    assert first[0].shape == (64, 64, 3)
    assert not np.array_equal(first[0], first[1])
    for ours, theirs in zip(first, draw(loaded, (0, 1)), strict=True):
        assert int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= 1  # convolutions round by memory alignment


def test_another_projection_is_refused(tmp_path: Path) -> None:
    path = write_projection(tmp_path / "projection.safetensors")
    folder = tmp_path / "folder"
    dim = sum(DIMS.values())
    save_layout(LayoutNet(SMALL, random_projection()), Contract("x", dim), folder, "card", path)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "LayoutPipeline"
    write_projection(folder / "net" / "projection.safetensors", seed=1)
    with pytest.raises(InputError, match="projection"):
        KIND.contract("x", {"net": folder / "net"})


def test_every_damaged_file_of_a_folder_is_named(tmp_path: Path) -> None:
    folder = support.save_tiny_layout(Contract("tiny", 6, negative=torch.zeros(6)), tmp_path / "decoder")
    row = torch.ones(1, 6) * 2
    whole = open_decoder(str(folder)).decode(row, Sampling(steps=1, guidance=1.0))[0][0].tobytes()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md"):
        content = path.read_bytes()
        for damaged in (bytes([content[0] ^ 1]) + content[1:], content[: len(content) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=path.name.partition(".")[0]):
                open_decoder(str(folder))
        path.write_bytes(content)
    assert open_decoder(str(folder)).decode(row, Sampling(steps=1, guidance=1.0))[0][0].tobytes() == whole


def test_a_part_of_another_library_is_refused(tmp_path: Path) -> None:
    folder = support.save_tiny_layout(Contract("tiny", 6), tmp_path / "decoder")
    (folder / "checksums.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"net": ["os", "LayoutNet"]}))
    with pytest.raises(InputError, match="csaligner"):
        open_decoder(str(folder))


def test_micro_needs_no_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    opened, sampling = open_decoder("micro"), default_sampling("micro", steps=1, guidance=None)
    assert (opened.side, opened.contract.encoder_id) == (64, "bundled:efficientnet-lite0-layout")
    assert (sampling.steps, sampling.guidance) == (1, 1.5)
    assert opened.decode(torch.ones(1, opened.contract.dim), sampling)[0][0].size == (64, 64)
