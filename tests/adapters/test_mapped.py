"""Training on rows mapped once equals training on features."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.mapped import MappedAligner, unit_rows
from csaligner.config import TrainConfig
from csaligner.estimator import CSAligner
from csaligner.paired_features import pair_features


def aligner(**config: object) -> tuple[Aligner, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    image, text = torch.randn(40, 8, generator=g) + 1, torch.randn(40, 8, generator=g) - 1
    return Aligner.fit_start(pair_features(image, text), TrainConfig.model_validate(config)), image, text


@pytest.mark.parametrize("blocks", [1, 2])
def test_outputs_and_gradients_are_those_of_the_aligner(blocks: int) -> None:
    model, image, text = aligner(image_adapter={"blocks": blocks}, text_adapter={"blocks": 1})
    mapped = MappedAligner(model)
    rows = mapped.map_rows(0, image), mapped.map_rows(1, text)
    with torch.no_grad():
        for p in model.parameters():  # a few steps later
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * p.requires_grad)
    weights = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    learnt = [p for p in model.parameters() if p.requires_grad and p is not model.log_logit_scale]
    found = []
    for outputs in (model(image, text), mapped(*rows)):
        value = (outputs[0] * weights).sum() + (outputs[1] * weights).square().sum()
        found.append((*outputs, *torch.autograd.grad(value, learnt)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, float(a.detach().abs().max())), rtol=0)


def test_dropout_is_applied_in_training() -> None:
    model, image, text = aligner(image_adapter={"dropout": 0.5})
    mapped = MappedAligner(model)
    rows = mapped.map_rows(0, image), mapped.map_rows(1, text)
    with torch.no_grad():
        for p in model.image_adapter.parameters():
            p.add_(0.1)
    found = [mapped.train(mode)(*rows)[0] for mode in (False, False, True, True)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[2], found[3])


def test_only_fixed_maps_are_applied_once() -> None:
    model, image, _ = aligner(image_adapter={"name": "linear"})
    mapped = MappedAligner(model)
    assert mapped.map_rows(0, image) is image
    assert MappedAligner.saves_time(model, image, None)
    assert not MappedAligner.saves_time(aligner(start={"kind": "random"})[0], image)
    assert {id(p) for p in mapped.parameters()} == {id(p) for p in model.parameters()}


def test_rows_are_mapped_into_their_own_memory_only_on_request() -> None:
    model, image, text = aligner()
    mapped, before = MappedAligner(model), image.clone()
    rows = mapped.map_rows(0, image)
    assert rows is not None
    assert torch.equal(image, before)
    assert mapped.map_rows(0, image, reuse=True) is image
    assert torch.equal(image, rows)
    wide = text.double()
    assert mapped.map_rows(1, wide, reuse=True) is not wide


def test_fit_with_a_gate_leaves_the_features_as_they_are() -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.randn(300, 8, generator=g)
    text = image + 0.3 * torch.randn(300, 8, generator=g)
    before = image.clone(), text.clone()
    CSAligner(epochs=1, verbose=False).fit(image, text)
    assert torch.equal(image, before[0])
    assert torch.equal(text, before[1])


def test_unit_rows_have_the_gradients_of_normalize() -> None:
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(unit_rows(x), normalize(x, dim=1))
    assert torch.autograd.gradcheck(unit_rows, x)
