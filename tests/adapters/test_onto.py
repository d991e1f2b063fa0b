"""Alignment onto a fixed modality."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner, align
from csaligner.config import TrainConfig, build_config
from csaligner.evaluation.retrieval import retrieval_metrics
from csaligner.types import PairedFeatures


def cones(n: int = 300, dim: int = 24) -> PairedFeatures:
    """Return pairs in two cones, as of CLIP: each modality has a large mean."""
    g = torch.Generator().manual_seed(0)
    signal = torch.randn(n, dim, generator=g)
    means = 6 * normalize(torch.randn(2, dim, generator=g), dim=1)
    noise = 0.8 * torch.randn(2, n, dim, generator=g)
    lengths = 1 + 0.5 * torch.rand(2, n, 1, generator=g)
    image, text = (normalize(signal + noise[i] + lengths[i] * means[i], dim=1) for i in (0, 1))
    return PairedFeatures(image, text, torch.arange(n), tuple(map(str, range(n))))


def model(kind: str = "auto", **settings: object) -> Aligner:
    start = {"kind": kind} | {"spread": settings.pop("spread", 3.0)}
    return Aligner.fit_start(
        cones(), build_config(TrainConfig, {"image_adapter": "identity", "start": start} | settings)
    )


def test_the_start_is_the_formula() -> None:
    f = cones()
    for adapter in ("linear", "mlp"):
        found = model(text_adapter=adapter, spread=2.0).text_adapter(f.text)
        m = f.image.double().mean(0)
        u = f.text.double() - f.text.double().mean(0)
        u = u - torch.outer(u @ m, m) / (m @ m)
        spread = 2 * (f.image.double() - m).square().sum(1).mean().sqrt()
        torch.testing.assert_close(found, (spread * normalize(u, dim=1) + m).float(), atol=2e-5, rtol=0)


def test_the_fixed_side_is_not_touched_and_the_gap_closes_without_losing_recall() -> None:
    f = cones()
    landed, moved = align(model().eval(), f), align(model("identity").eval(), f)
    assert torch.equal(landed.image, normalize(f.image, dim=1))

    def recall(found: PairedFeatures) -> float:
        metrics = retrieval_metrics(found.image, found.text)
        return (metrics["image_to_text_recall@1"] + metrics["text_to_image_recall@1"]) / 2

    def gap(found: PairedFeatures) -> float:
        return float((found.image.mean(0) - found.text.mean(0)).norm())

    assert gap(landed) < 0.5 * gap(f)
    assert recall(landed) > recall(moved) + 0.02
    assert recall(landed) > recall(f) - 0.02


def test_the_scale_beside_a_fixed_side_is_one_that_suits_it() -> None:
    def scale(**settings: object) -> tuple[object, bool]:
        c = build_config(TrainConfig, settings).objective
        return c.logit_scale, c.learn_logit_scale

    plain = scale()
    assert scale(image_adapter="identity") == scale(text_adapter={"name": "identity"}) == (50.0, False)
    assert scale(image_adapter="identity", objective={"terms": {"info_nce": 1.0}}) == (50.0, False)
    assert scale(image_adapter="identity", objective={"logit_scale": 20.0}) == (20.0, True)
    assert plain[1] is True
    assert plain[0] != 50.0
