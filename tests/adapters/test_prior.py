"""ECLIPSE text prior: its network, published checkpoints, and the fixed image side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner, align
from csaligner.adapters.prior import PriorAdapter
from csaligner.adapters.standardise import CentreAdapter
from csaligner.adapters.start import Affine, blank
from csaligner.checks import InputError
from csaligner.config import AdapterConfig, TrainConfig, build_config
from csaligner.types import PairedFeatures, TokenRows
from tests.support.eclipse import make_prior, save_eclipse

SMALL = AdapterConfig(name="prior", hidden=16, heads=2, blocks=2, states=5)
DIM, WIDTH = 8, 16


def adapter(**settings: Any) -> PriorAdapter:
    """Return a small prior whose last layer is not zero, as after training."""
    torch.manual_seed(0)
    prior = PriorAdapter(Affine(torch.zeros(6), torch.randn(6, 4), torch.zeros(4)), SMALL.model_copy(update=settings))
    torch.nn.init.normal_(prior.network.proj_to_clip_embeddings.weight)
    return prior.eval()


def trainable(prior: PriorAdapter) -> int:
    return sum(p.numel() for p in prior.parameters() if p.requires_grad)


def test_full_size_has_the_parameters_of_the_paper() -> None:
    sizes = {}
    for name, dim in (("kandinsky", 1280), ("karlo", 768)):
        with torch.device("meta"):
            full = AdapterConfig(name="prior", hidden=512, blocks=10, states=dim)
            prior = PriorAdapter(Affine(torch.zeros(dim), torch.zeros(dim, dim), torch.zeros(dim)), full)
        prior.randomise()
        sizes[name] = trainable(prior)
        assert prior.network.shape.heads == 16
    assert round(sizes["kandinsky"] / 1e6) == 34  # "33 to 34 million"
    assert round(sizes["karlo"] / 1e6) == 33


def test_a_new_prior_computes_its_closed_form_start() -> None:
    prior = PriorAdapter(Affine(torch.ones(6) / 6, torch.eye(6)[:, :4], torch.ones(4)), SMALL)
    x = torch.randn(3, 6)
    torch.testing.assert_close(prior(x, torch.randn(3, 2, 5)), prior.start(x))


def test_states_matter_and_masked_ones_do_not() -> None:
    prior, x, states = adapter(), torch.randn(3, 6), torch.randn(3, 5, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    found = prior(x, states, mask)
    hidden = states.clone()
    hidden[:, 3:] = float("nan")
    torch.testing.assert_close(prior(x, hidden, mask), found)
    torch.testing.assert_close(prior(x, states[:, :3]), found)
    hidden[:, 0] += 1
    assert not torch.allclose(prior(x, hidden, mask), found, atol=1e-3)


def test_noise_is_seeded_in_evaluation_and_drawn_in_training() -> None:
    x, states = torch.randn(2, 6), torch.randn(2, 3, 5)
    first, again, other = (adapter(noise=seed)(x, states) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    prior = adapter(noise=0).train()
    assert not torch.allclose(prior(x, states), prior(x, states), atol=1e-3)


def test_states_of_a_wrong_shape_are_one_line() -> None:
    prior = adapter()
    with pytest.raises(InputError, match=r"states.*\(3, 80, 5\)"):
        prior(torch.randn(3, 6), torch.randn(3, 80, 5))
    with pytest.raises(InputError, match=r"mask.*\(3, 2\).*\(3, 5\)"):
        prior(torch.randn(3, 6), torch.randn(3, 5, 5), torch.ones(3, 2))
    with pytest.raises(InputError, match="--tokens"):
        prior(torch.randn(3, 6))
    with pytest.raises(InputError, match="pooled text alone"):
        adapter(states=None)(torch.randn(3, 6), torch.randn(3, 5, 5))


@pytest.fixture(scope="module")
def theirs() -> Any:
    return make_prior(DIM, WIDTH)


def test_a_published_checkpoint_computes_what_diffusers_computes(theirs: Any, tmp_path: Path) -> None:
    """diffusers' own forward, in which no later position attends to the slot of the time."""
    folder = save_eclipse(theirs, tmp_path / "eclipse")
    config = AdapterConfig(name="prior", hidden=WIDTH, heads=2, blocks=3, states=DIM, noise=0)
    ours = PriorAdapter(blank(DIM, DIM), config)
    ours.load_published(folder)
    x, states, noise = torch.randn(3, DIM), torch.randn(3, 77, DIM), torch.randn(3, DIM)
    mask = torch.arange(77) < torch.tensor([[5], [77], [12]])
    with torch.no_grad():
        theirs.causal_attention_mask[:, 79:, 78] = -10000.0
        wanted = theirs(noise, 1, x, states, mask).predicted_image_embedding
        found = ours.eval()(x, states, mask, noise)
        short = ours(x, states[:, :12], mask[:, :12], noise)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(short[[0, 2]], wanted[[0, 2]], atol=1e-5, rtol=0)  # padding has no influence


def test_bad_checkpoints_are_one_line(theirs: Any, tmp_path: Path) -> None:
    prior = PriorAdapter(blank(DIM, DIM), AdapterConfig(name="prior", hidden=WIDTH, heads=2, blocks=1, states=DIM))
    with pytest.raises(InputError, match=r"config\.json"):
        prior.load_published(tmp_path)
    theirs.save_pretrained(tmp_path / "diffusion")
    with pytest.raises(InputError, match="diffusion prior"):
        prior.load_published(tmp_path / "diffusion")
    folder = save_eclipse(theirs, tmp_path / "eclipse")
    with pytest.raises(InputError, match="fit"):
        prior.load_published(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"norm_in_type": "layer"}))
    with pytest.raises(InputError, match="norm_in_type"):
        prior.load_published(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        prior.load_published(folder)


def paired(n: int = 40) -> PairedFeatures:
    g = torch.Generator().manual_seed(3)
    counts = torch.randint(2, 6, (n,), generator=g)
    states = TokenRows(torch.randn(int(counts.sum()), DIM, generator=g), counts)
    image = torch.randn(n, DIM, generator=g) * torch.linspace(0.5, 3, DIM) + 2
    text = torch.randn(n, DIM, generator=g)
    return PairedFeatures(image, text, torch.arange(n), tuple(map(str, range(n))), states=states)


@pytest.mark.parametrize("image", ["standardise", "identity"])
def test_a_checkpoint_is_a_start_and_a_baseline(theirs: Any, tmp_path: Path, image: str) -> None:
    """The aligner's directions, mapped back, are those of the published prior's embeddings."""
    folder = save_eclipse(theirs, tmp_path / "eclipse")
    settings = {"image_adapter": image, "text_adapter": "prior", "start": {"checkpoint": str(folder)}}
    f = paired()
    assert f.states is not None
    model = Aligner.fit_start(f, build_config(TrainConfig, settings)).eval()
    sets = f.states[torch.arange(40)]
    prior = PriorAdapter(blank(DIM, DIM), model.config.text_adapter).eval()
    prior.load_published(folder)
    with torch.no_grad():
        raw = prior(f.text, sets.states, sets.mask)
        wanted = unit(model.image_adapter(raw))
    torch.testing.assert_close(align(model, f).text, wanted, atol=1e-5, rtol=0)
    model.save(tmp_path / "saved")
    torch.testing.assert_close(align(Aligner.load(tmp_path / "saved"), f).text, wanted, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="--tokens"):
        align(model, PairedFeatures(f.image, f.text, f.text_to_image, f.image_ids))


def test_a_checkpoint_needs_a_prior_onto_fixed_images() -> None:
    with pytest.raises(InputError, match=r"checkpoint.*text_adapter=prior"):
        build_config(TrainConfig, {"image_adapter": "standardise", "start": {"checkpoint": "folder"}})
    with pytest.raises(InputError, match=r"checkpoint.*image_adapter"):
        build_config(TrainConfig, {"text_adapter": "prior", "start": {"checkpoint": "folder"}})


def test_random_weights_are_the_published_network_without_a_start() -> None:
    settings = {
        "image_adapter": "standardise",
        "text_adapter": {"name": "prior", "hidden": 16},
        "start": {"kind": "random"},
    }
    f = paired()
    model = Aligner.fit_start(f, build_config(TrainConfig, settings)).eval()
    assert isinstance(model.text_adapter, PriorAdapter)
    assert not model.text_adapter.start(f.text).any()
    assert bool(align(model, f).text.isfinite().all())
    assert all("network" in name for name, p in model.text_adapter.named_parameters() if p.requires_grad)


def raw_features() -> PairedFeatures:
    g = torch.Generator().manual_seed(1)
    image = torch.randn(50, 8, generator=g) * torch.linspace(0.5, 3, 8) + 4
    return PairedFeatures(image, image[:, :5] + 0.1, torch.arange(50), tuple(map(str, range(50))))


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("text", ["prior", "mlp", "linear"])
def test_standardise_fixes_the_image_side_and_gives_raw_embeddings_back(text: str) -> None:
    f = raw_features()
    config = build_config(TrainConfig, {"image_adapter": "standardise", "text_adapter": text})
    model = Aligner.fit_start(f, config).eval()
    assert not list(model.image_adapter.parameters())
    z = (f.image - f.image.mean(dim=0)) / f.image.std(dim=0)
    torch.testing.assert_close(model.encode_image(f.image), unit(z))
    raw = model.image_adapter.raw(unit(z))  # type: ignore[operator]
    wanted = f.image.mean(dim=0) + f.image.std(dim=0) * z.norm(dim=1).median() * unit(z)
    torch.testing.assert_close(raw, wanted)


def test_the_text_side_lands_on_the_standardised_images() -> None:
    """The texts are rotated standardised images: ridge regression finds the inverse rotation."""
    f = raw_features()
    z = (f.image - f.image.mean(dim=0)) / f.image.std(dim=0)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    f = PairedFeatures(f.image, z @ rotation, f.text_to_image, f.image_ids)
    config = build_config(TrainConfig, {"image_adapter": "standardise", "text_adapter": "mlp"})
    config = config.model_copy(update={"start": config.start.model_copy(update={"kind": "projection"})})
    image, text = Aligner.fit_start(f, config).eval()(f.image, f.text)
    assert float((image * text).detach().sum(dim=1).mean()) > 0.97


def test_centre_keeps_the_sizes_of_the_dimensions() -> None:
    torch.manual_seed(0)
    image, text = torch.randn(60, 5) * torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5]) + 3, torch.randn(60, 4)
    pairs = PairedFeatures(image, text, torch.arange(60), tuple(map(str, range(60))))
    config = build_config(TrainConfig, {"image_adapter": "centre", "text_adapter": "mlp"})
    adapter = Aligner.fit_start(pairs, config).image_adapter
    assert isinstance(adapter, CentreAdapter)
    found = adapter(image)
    torch.testing.assert_close(found.std(dim=0) / found.std(dim=0)[0], image.std(dim=0) / image.std(dim=0)[0])
    unit = torch.nn.functional.normalize(found, dim=1)
    torch.testing.assert_close(torch.nn.functional.normalize(adapter(adapter.raw(unit)), dim=1), unit)
