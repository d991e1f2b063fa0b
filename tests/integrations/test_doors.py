"""Integration losses under torch.compile, autocast and double backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.integrations.open_clip import CSAlignerClipLoss
from csaligner.integrations.sentence_transformers import CSAlignerEmbeddingLoss
from csaligner.losses.modalities import ModalitiesLoss

Door = Callable[[Tensor, Tensor], Tensor]
SCALE = 6.0


class Embeds(nn.Module):
    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["x"]}


def door(name: str, impl: str) -> Door:
    """(x, y) of unit rows -> total loss, InfoNCE + 0.7 D_CS for every integration."""
    if name == "plain":
        plain = CSAlignerLoss(0.7, impl=impl)
        return lambda x, y: plain(x, y, SCALE).total
    if name in ("gather", "ring"):
        parallel = CSAlignerLoss(0.7, impl=impl, exchange=name)
        return lambda x, y: parallel(x, y, SCALE).total
    if name == "open_clip":
        clip = CSAlignerClipLoss(weight=0.7, impl=impl)
        return lambda x, y: sum(clip(x, y, SCALE, output_dict=True).values(), torch.zeros(()))
    if name == "sentence_transformers":
        sentences = CSAlignerEmbeddingLoss(Embeds(), SCALE, 0.7, impl=impl)
        return lambda x, y: cast(Tensor, sentences([{"x": x}, {"x": y}]))
    modalities = ModalitiesLoss(0.7, impl=impl)
    return lambda x, y: modalities({"image": x, "text": y}, SCALE).total


TILED = ["plain", "gather", "ring", "open_clip", "sentence_transformers", "modalities"]
DENSE = [name for name in TILED if name != "ring"]


def rows(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [normalize(torch.randn(12, 5, generator=g), dim=1).to(dtype).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("name", TILED)
def test_torch_compile_gives_the_same_numbers(name: str) -> None:
    (x, y), loss = rows(), door(name, "tiled")

    def step(x: Tensor, y: Tensor) -> Tensor:
        return loss(normalize(x * 2, dim=1), normalize(y * 3, dim=1)) * 2

    compiled = torch.compile(step, backend="eager")
    plain, other = step(x, y), compiled(x, y)
    torch.testing.assert_close(other, plain)
    for a, b in zip(torch.autograd.grad(other, (x, y)), torch.autograd.grad(plain, (x, y)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TILED)
def test_half_precision_features_under_autocast_lose_nothing_more(name: str, dtype: torch.dtype) -> None:
    """Only the features are rounded to bfloat16; logits and kernels in bfloat16 would have errors of 1e-2."""
    x, y = rows(dtype)
    with torch.autocast("cpu", dtype=dtype):
        total = door(name, "tiled")(x, y)
    assert total.dtype == torch.float32
    x64, y64 = x.detach().double().requires_grad_(), y.detach().double().requires_grad_()
    unit = (normalize(t, dim=1) if name == "sentence_transformers" else t for t in (x64, y64))
    wanted = CSAlignerLoss(0.7, impl="reference")(*unit, logit_scale=SCALE).total
    torch.testing.assert_close(total.double(), wanted, rtol=1e-5, atol=1e-5)
    for f, w in zip(torch.autograd.grad(total, (x, y)), torch.autograd.grad(wanted, (x64, y64)), strict=True):
        assert f.dtype == dtype
        torch.testing.assert_close(f.double(), w, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("name", DENSE)
def test_the_dense_implementation_has_a_second_derivative(name: str) -> None:
    x, y = (t.detach().double()[:4].requires_grad_() for t in rows())
    assert torch.autograd.gradgradcheck(door(name, "reference"), (x, y), atol=1e-6)


@pytest.mark.parametrize("name", TILED)
def test_the_tiles_refuse_one_in_a_line(name: str) -> None:
    x, y = rows()
    with pytest.raises(InputError, match=r"^(impl|exchange).*reference") as refused:
        torch.autograd.grad(door(name, "tiled")(x, y), (x, y), create_graph=True)
    assert "\n" not in str(refused.value)
