"""ECLIPSE text prior."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.prior import PriorAdapter
from csaligner.adapters.standardise import CentreAdapter
from csaligner.adapters.start import Affine
from csaligner.checks import InputError
from csaligner.config import AdapterConfig, TrainConfig, build_config
from csaligner.types import PairedFeatures

SMALL = AdapterConfig(name="prior", hidden=16, blocks=2)


def adapter() -> PriorAdapter:
    """Return a small prior whose last layer is not zero, as after training."""
    torch.manual_seed(0)
    prior = PriorAdapter(Affine(torch.zeros(6), torch.randn(6, 4), torch.zeros(4)), SMALL).eval()
    torch.nn.init.normal_(prior.out.weight)
    return prior


def trainable(prior: PriorAdapter) -> int:
    return sum(p.numel() for p in prior.parameters() if p.requires_grad)


def test_full_size_has_the_parameters_of_the_paper() -> None:
    full = AdapterConfig(name="prior", hidden=512, blocks=10)
    with torch.device("meta"):
        kandinsky = PriorAdapter(Affine(torch.zeros(1280), torch.zeros(1280, 1280), torch.zeros(1280)), full)
        karlo = PriorAdapter(Affine(torch.zeros(768), torch.zeros(768, 768), torch.zeros(768)), full)
    assert 33e6 <= trainable(kandinsky) <= 34e6
    assert 32e6 <= trainable(karlo) <= 33e6


def test_a_new_prior_computes_its_closed_form_start() -> None:
    prior = PriorAdapter(Affine(torch.ones(6) / 6, torch.eye(6)[:, :4], torch.ones(4)), SMALL)
    x = torch.randn(3, 6)
    torch.testing.assert_close(prior(x), prior.start(x))


def test_tokens_matter_and_masked_ones_do_not() -> None:
    prior, x, tokens = adapter(), torch.randn(3, 6), torch.randn(3, 5, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    found = prior(x, tokens, mask)
    assert not torch.allclose(found, prior(x), atol=1e-3)
    hidden = tokens.clone()
    hidden[:, 3:] = float("nan")
    torch.testing.assert_close(prior(x, hidden, mask), found)
    hidden[:, 0] += 1
    assert not torch.allclose(prior(x, hidden, mask), found, atol=1e-3)


def test_the_mask_is_causal() -> None:
    """A later token does not change the states of earlier tokens in the first layer's output."""
    prior = adapter()
    h = torch.randn(1, 4, 16)
    changed = h.clone()
    changed[:, 3] += 1
    allowed = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    layer = prior.layers[0]
    torch.testing.assert_close(layer(h, allowed)[:, :3], layer(changed, allowed)[:, :3])


def test_tokens_of_a_wrong_shape_are_one_line() -> None:
    prior = adapter()
    with pytest.raises(InputError, match=r"tokens.*\(3, 80, 6\)"):
        prior(torch.randn(3, 6), torch.randn(3, 80, 6))
    with pytest.raises(InputError, match=r"mask.*\(3, 2\).*\(3, 5\)"):
        prior(torch.randn(3, 6), torch.randn(3, 5, 6), torch.ones(3, 2))


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
