"""Loss for open_clip in a training step as in its trainer."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

from csaligner.checks import InputError
from csaligner.distributed.processes import rank, world_size
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.integrations.open_clip import CSAlignerClipLoss
from tests.ranks import on_ranks

ROWS = 12


class Clip(nn.Module):
    """Two linear towers with the outputs of open_clip models for output_dict=True."""

    def __init__(self, with_bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual, self.textual = nn.Linear(8, 5).double(), nn.Linear(6, 5).double()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07), dtype=torch.float64))
        if with_bias:
            self.logit_bias = nn.Parameter(torch.tensor(-10.0, dtype=torch.float64))

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        out = {
            "image_features": normalize(self.visual(images), dim=-1),
            "text_features": normalize(self.textual(texts), dim=-1),
            "logit_scale": self.logit_scale.exp(),
        }
        return {**out, "logit_bias": self.logit_bias} if hasattr(self, "logit_bias") else out


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    images, texts = (torch.randn(ROWS, d, dtype=torch.float64, generator=g) + 1 for d in (8, 6))
    return images, texts


def step(model: nn.Module, loss: nn.Module, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    """One forward and backward as in open_clip's train_one_epoch."""
    losses: dict[str, Tensor] = loss(**model(images, texts), output_dict=True)
    total = sum(losses.values(), torch.zeros(()))
    losses["loss"] = total
    total.backward()  # type: ignore[no-untyped-call]
    return losses


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_it_is_the_clip_loss_plus_the_divergence() -> None:
    model, (images, texts) = Clip(), data()
    out = model(images, texts)
    logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
    clip = (cross_entropy(logits, torch.arange(ROWS)) + cross_entropy(logits.T, torch.arange(ROWS))) / 2
    cs = 0.4 * cauchy_schwarz_divergence(out["image_features"], out["text_features"], bandwidth=0.6)
    wanted = torch.autograd.grad(clip + cs, list(model.parameters()))

    loss = CSAlignerClipLoss(weight=0.4, bandwidth=0.6)
    losses = step(model, loss, images, texts)
    assert list(losses) == ["contrastive_loss", "cs_loss", "loss"]
    torch.testing.assert_close(losses["contrastive_loss"], clip, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses["cs_loss"], cs, rtol=1e-9, atol=0)
    for name, gradient in zip(dict(model.named_parameters()), wanted, strict=True):
        torch.testing.assert_close(gradients(model)[name], gradient, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(loss(**out), clip + cs, rtol=1e-9, atol=0)


def test_weight_0_is_the_clip_loss_and_both_names_stay() -> None:
    out = Clip()(*data())
    losses = CSAlignerClipLoss(weight=0)(**out, output_dict=True)
    assert float(losses["cs_loss"]) == 0
    torch.testing.assert_close(CSAlignerClipLoss(weight=0)(**out), losses["contrastive_loss"])


def two_ranks_equal_one_process(exchange: str) -> None:
    images, texts = data()
    alone = Clip(with_bias=True)
    wanted = step(alone, SingleProcess(), images, texts)
    own = slice(0, 5) if rank() == 0 else slice(5, ROWS)
    # A logit bias changes nothing, but without a gradient DistributedDataParallel would refuse the second step.
    model = DistributedDataParallel(Clip(with_bias=True))
    loss = CSAlignerClipLoss(rank=rank(), world_size=world_size(), local_loss=True, exchange=exchange)
    for _ in range(2):
        model.zero_grad()
        losses = step(model, loss, images[own], texts[own])
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=1e-9)
    for name, gradient in gradients(alone).items():
        torch.testing.assert_close(gradients(model.module)[name], gradient, rtol=1e-6, atol=1e-9)
    with pytest.raises(InputError, match=r"world_size.*3.*rank \d of 2"):
        CSAlignerClipLoss(rank=0, world_size=3)(**model(images[own], texts[own]))


class SingleProcess(nn.Module):
    """Loss of one process, without communication."""

    def forward(self, **out: Any) -> dict[str, Tensor]:
        out.pop("output_dict")
        bias = out.pop("logit_bias")
        losses = CSAlignerClipLoss(exchange="none")(**out, output_dict=True)
        assert isinstance(losses, dict)
        losses["contrastive_loss"] = losses["contrastive_loss"] + 0 * bias
        return losses


def both_exchanges() -> None:
    two_ranks_equal_one_process("gather")
    two_ranks_equal_one_process("ring")


def test_two_ranks_under_ddp_equal_one_process() -> None:
    on_ranks(2, both_exchanges)


def test_arguments_stand_in_the_order_of_clip_loss() -> None:
    names = ["local_loss", "gather_with_grad", "cache_labels", "rank", "world_size", "use_horovod"]
    assert list(inspect.signature(CSAlignerClipLoss).parameters)[:6] == names
    forward = ["self", "image_features", "text_features", "logit_scale", "logit_bias", "output_dict"]
    assert list(inspect.signature(CSAlignerClipLoss.forward).parameters) == forward


def test_what_it_cannot_do_is_one_line() -> None:
    with pytest.raises(InputError, match="use_horovod"):
        CSAlignerClipLoss(use_horovod=True)
    with pytest.raises(InputError, match="process group"):
        CSAlignerClipLoss(rank=1, world_size=2)(**Clip()(*data()))
