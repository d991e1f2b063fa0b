"""Alignment loss of several modalities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.distributed.loss import CSAlignerLoss
from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.divergences.hoelder import hoelder_divergence
from csaligner.losses.infonce import info_nce
from csaligner.losses.modalities import ModalitiesLoss

SCALE = 6.0
IDS = {
    "image": torch.tensor([0, 1, 2, 3, 4, -1]),
    "english": torch.tensor([1, 0, 0, 5, 3]),
    "german": torch.tensor([1, 1, 4, 0, -1, -1, 7]),
}


def clouds(*rows: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        name: normalize(torch.randn(n, 3, generator=g, dtype=torch.float64), dim=1).requires_grad_()
        for name, n in zip(IDS, rows, strict=False)
    }


def weights(ids: Tensor) -> Tensor:
    return torch.tensor([1 / int((ids == i).sum()) if i >= 0 else 1.0 for i in ids], dtype=torch.float64)


@pytest.mark.parametrize("impl", ["reference", "tiled"])
def test_it_is_the_mean_over_pairs_of_the_terms_alone(impl: str) -> None:
    x = clouds(6, 5, 7)
    loss = ModalitiesLoss(weight=0.6, bandwidth=0.7, impl=impl)(x, SCALE, IDS)
    pairs = [("image", "english"), ("image", "german"), ("english", "german")]
    wanted = torch.zeros((), dtype=torch.float64)
    for a, b in pairs:
        nce = info_nce(x[a], x[b], SCALE, IDS[a], text_ids=IDS[b])
        w_a, w_b = weights(IDS[a]), weights(IDS[b])
        cs = cauchy_schwarz_divergence(x[a], x[b], bandwidth=0.7, weights_x=w_a, weights_y=w_b)
        torch.testing.assert_close(loss.terms[f"info_nce/{a}-{b}"], nce.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(loss.terms[f"cauchy_schwarz/{a}-{b}"], cs.detach(), rtol=1e-9, atol=1e-12)
        assert loss.weights[f"cauchy_schwarz/{a}-{b}"] == pytest.approx(0.2)
        wanted = wanted + nce / 3 + 0.2 * cs
    torch.testing.assert_close(loss.total, wanted, rtol=1e-9, atol=1e-12)
    found, expected = (torch.autograd.grad(total, list(x.values())) for total in (loss.total, wanted))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-7, atol=1e-10)


def test_hoelder_joins_all_at_once_and_counts_captions_once() -> None:
    x = clouds(5, 5, 5)
    loss = ModalitiesLoss(weight=0.6, divergence="hoelder", bandwidth=0.7)(x, SCALE)
    wanted = hoelder_divergence(*(t.detach() for t in x.values()), bandwidth=0.7)
    torch.testing.assert_close(loss.terms["hoelder"], wanted, rtol=1e-9, atol=1e-12)
    again = torch.tensor([0, 1, 2, 3, 3, 3, 4])
    doubled = {**x, "german": x["german"][again]}
    ids = {"image": torch.arange(5), "english": torch.arange(5), "german": again}
    often = ModalitiesLoss(weight=0.6, divergence="hoelder", bandwidth=0.7)(doubled, SCALE, ids)
    torch.testing.assert_close(often.total, loss.total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", ["cauchy_schwarz", "hoelder"])
def test_two_modalities_are_the_loss_of_two(divergence: str) -> None:
    x = clouds(6, 5)
    ids = {name: IDS[name] for name in x}
    loss = ModalitiesLoss(0.6, divergence, bandwidth="median")(x, SCALE, ids)
    wanted = CSAlignerLoss(0.6, "median")(x["image"], x["english"], SCALE, ids["image"], ids["english"])
    torch.testing.assert_close(loss.total, wanted.total, rtol=1e-9, atol=1e-12)


def test_modalities_that_share_no_row_meet_in_the_divergence() -> None:
    x = clouds(6, 5, 7)
    ids = {**IDS, "german": torch.arange(100, 107)}
    joined = ModalitiesLoss(pairs=[("english", "image")])
    terms = joined(x, SCALE, ids).terms
    assert set(terms) == {
        "info_nce/image-english",
        *(f"cauchy_schwarz/{pair}" for pair in ("image-english", "image-german", "english-german")),
    }
    with pytest.raises(InputError, match=r"german.*image"):
        ModalitiesLoss(pairs=[("image", "german")])(x, SCALE, ids)


def test_the_order_of_modalities_does_not_matter() -> None:
    x = clouds(5, 5, 5)
    for divergence in ("cauchy_schwarz", "hoelder"):
        loss = ModalitiesLoss(divergence=divergence)
        backwards = loss(dict(reversed(x.items())), SCALE)
        torch.testing.assert_close(backwards.total, loss(x, SCALE).total, rtol=1e-9, atol=1e-12)


def test_bad_input_is_one_line() -> None:
    x, loss = clouds(6, 5, 7), ModalitiesLoss()
    with pytest.raises(InputError, match=r"image.*6.*english.*5"):
        loss(x, SCALE)
    with pytest.raises(InputError, match=r"^ids.*'image'"):
        loss(x, SCALE, {"image": IDS["image"]})
    with pytest.raises(InputError, match=r"english.*ids"):
        loss(x, SCALE, {**IDS, "english": ["a", "b", "c", "d", "e"]})
    with pytest.raises(InputError, match=r"ids.*english.*6.*5"):
        loss(x, SCALE, {**IDS, "english": torch.arange(6)})
    with pytest.raises(InputError, match=r"1.*two"):
        loss({"image": x["image"]}, SCALE)
    with pytest.raises(InputError, match="'german'"):
        ModalitiesLoss(pairs=[("image", "germany")])(x, SCALE, IDS)
    with pytest.raises(InputError, match="different"):
        ModalitiesLoss(pairs=[("image", "image")])
