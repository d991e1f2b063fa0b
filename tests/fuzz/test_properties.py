"""Property tests of public functions, divergences and losses: documented errors only, finite results, invariances.

CSALIGNER_FUZZ_EXAMPLES=500 runs more examples, which differ between runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import Tensor

import csaligner
from csaligner.checks import CSAlignerError, InputError
from csaligner.losses.modalities import ModalitiesLoss
from csaligner.losses.objective import Objective
from csaligner.losses.token import token_cauchy_schwarz
from csaligner.ops.kernels import KERNELS
from csaligner.registry import DIVERGENCES, PAIRED_LOSSES, load

from .arrays import ODD, clouds, few, plain, seeds

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are zero:UserWarning")

Function = Callable[..., Any]
NAMES = sorted(DIVERGENCES)
WITH_KERNEL = ("cauchy_schwarz", "mmd", "hoelder")  # bandwidth scales with the points
LINEAR = {"energy": 1, "bures_wasserstein": 2}  # value grows with this power of the scale
RAW: Mapping[str, Function] = {name: load("divergence", DIVERGENCES, name) for name in NAMES}


def where_defined(name: str) -> Function:
    """Skip samples with singular covariances for gaussian_kl."""

    def call(*samples: Tensor, **words: Any) -> Tensor:
        try:
            found: Tensor = RAW[name](*samples, **words)
        except InputError:
            if name != "gaussian_kl":
                raise
            reject()
        return found

    return call


DIVERGENCE: Mapping[str, Function] = {name: where_defined(name) for name in NAMES}


def of_objective(x: Any, y: Any) -> Any:
    return csaligner.CSAlignerLoss()(x, y, 10.0).total


# of two samples; CSAligner has a separate test
FUNCTIONS: Mapping[str, Function] = {
    **{f"divergence {name}": function for name, function in RAW.items()},
    **{f"loss {name}": lambda x, y, n=name: Objective({n: 1.0})(x, y, 10.0).total for name in PAIRED_LOSSES},
    "info_nce": lambda x, y: csaligner.info_nce(x, y, 10.0),
    "CSAlignerLoss": of_objective,
    **{name: getattr(csaligner, name) for name in csaligner.__all__ if name.endswith("_metrics")},
}


def answer(call: Function) -> Any:
    """Return the result, or None for a one-line error."""
    try:
        return call()
    except CSAlignerError as error:
        if not str(error).isprintable():
            raise AssertionError from error
        return None


def numbers(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        return [float(v) for v in value.values()]
    return value.detach().double().flatten().tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", FUNCTIONS)
@given(bad=ODD, good=plain(), first=st.booleans())
@few
def test_what_is_no_sample_is_refused_in_one_line(name: str, bad: Any, good: Any, first: bool) -> None:
    with pytest.raises(CSAlignerError) as caught:
        FUNCTIONS[name](*((bad, good) if first else (good, bad)))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", FUNCTIONS)
@given(data=st.data(), rows=st.integers(1, 8))
@few
def test_any_dtype_layout_and_scale_is_taken(name: str, data: st.DataObject, rows: int) -> None:
    """The result is finite, or the error is one line (for example retrieval of one pair)."""
    x, y = data.draw(plain(st.just(rows))), data.draw(plain(st.just(rows)))
    found = answer(lambda: FUNCTIONS[name](x, y))
    if isinstance(found, Tensor):  # a metric that does not exist for so few rows is NaN
        assert all(map(math.isfinite, numbers(found)))


@pytest.mark.parametrize("name", NAMES)
@given(pair=clouds(), seed=seeds)
@few
def test_a_divergence_knows_no_order_no_sides_and_no_frame(name: str, pair: tuple[Tensor, Tensor], seed: int) -> None:
    x, y = (sample / (1 + sample.norm(dim=1).max()) for sample in pair)
    value, f = DIVERGENCE[name](x, y), DIVERGENCE[name]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=generator, dtype=torch.float64))
    same = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-7)
    same(f(x[order], y), value)
    same(f(y, x), value)
    same(f(x @ turn, y @ turn), value)
    same(f(x + 0.7, y + 0.7), value)


@pytest.mark.parametrize("name", NAMES)
@given(pair=clouds(scales=(-1, 1)))
@few
def test_a_divergence_is_never_below_zero_and_zero_for_one_sample(name: str, pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    assert float(DIVERGENCE[name](x, y)) >= -1e-6
    assert abs(float(DIVERGENCE[name](x, x.clone()))) < 1e-5


@pytest.mark.parametrize("name", WITH_KERNEL)
@pytest.mark.parametrize("kernel", sorted(KERNELS))
@given(pair=clouds(), scale=st.floats(-3, 3))
@few
def test_scaling_points_and_bandwidth_changes_nothing(
    name: str, kernel: str, pair: tuple[Tensor, Tensor], scale: float
) -> None:
    (x, y), factor, f = pair, 10.0**scale, DIVERGENCE[name]
    before = f(x, y, bandwidth=1.0, kernel=kernel)
    after = f(x * factor, y * factor, bandwidth=factor, kernel=kernel)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LINEAR)
@given(pair=clouds(scales=(-1, 1)), scale=st.floats(-2, 2))
@few
def test_distances_grow_with_the_scale(name: str, pair: tuple[Tensor, Tensor], scale: float) -> None:
    (x, y), factor, f = pair, 10.0**scale, DIVERGENCE[name]
    grown = float(f(x, y)) * factor ** LINEAR[name]
    size = float(x.abs().max() + y.abs().max()) * factor
    assert math.isclose(float(f(x * factor, y * factor)), grown, rel_tol=1e-4, abs_tol=1e-4 * size ** LINEAR[name])


@pytest.mark.parametrize("name", NAMES)
@given(pair=clouds(most=40))
@few
def test_the_implementations_agree(name: str, pair: tuple[Tensor, Tensor]) -> None:
    values = [float(DIVERGENCE[name](*pair, impl=impl)) for impl in ("reference", "tiled")]
    assert math.isclose(*values, rel_tol=1e-8, abs_tol=1e-10)


@given(pair=clouds(scales=(-8, 8)))
@few
def test_no_scale_makes_the_gradient_infinite(pair: tuple[Tensor, Tensor]) -> None:
    for name in NAMES:
        x, y = (sample.float().requires_grad_() for sample in pair)
        DIVERGENCE[name](x, y).backward()
        assert bool(x.grad.isfinite().all()), name  # type: ignore[union-attr]
        assert bool(y.grad.isfinite().all()), name  # type: ignore[union-attr]


@given(ids=st.lists(st.one_of(st.none(), st.integers(-3, 3), st.text(max_size=3), st.floats()), max_size=6))
@few
def test_ids_of_any_kind(ids: list[Any]) -> None:
    x = torch.eye(4)
    for function in (csaligner.retrieval_metrics, csaligner.mixed_search_metrics, csaligner.gap_metrics):
        answer(partial(function, x, x, ids))
    answer(lambda: csaligner.info_nce(x, x, 10.0, image_ids=ids, text_ids=ids))


@given(scale=st.one_of(st.floats(), st.none(), st.text(max_size=2), st.integers(-5, 5)), impl=st.text(max_size=3))
@few
def test_settings_of_any_kind(scale: Any, impl: str) -> None:
    x = torch.eye(4)
    for call in (
        lambda: csaligner.info_nce(x, x, scale),
        lambda: csaligner.info_nce(x, x, 10.0, impl=impl),
        lambda: csaligner.cauchy_schwarz_divergence(x, x, bandwidth=scale),
        lambda: csaligner.mmd(x, x, bandwidth=scale),
        lambda: csaligner.cauchy_schwarz_divergence(x, x, kernel=impl),
        lambda: csaligner.cauchy_schwarz_divergence(x, x, weights_x=[scale] * 4),
        lambda: csaligner.gap_metrics(x, x, bandwidth=scale),
        lambda: Objective({impl: scale})(x, x, 10.0),
        lambda: csaligner.CSAlignerLoss(scale)(x, x, 10.0),
        lambda: csaligner.CSAligner(batch_size=scale),
        lambda: csaligner.CSAligner(**{f"key{impl}": scale}),
        lambda: csaligner.CSAligner(seed=scale, objective={"terms": {"info_nce": scale}}),
    ):
        answer(call)


@given(bad=ODD)
@few
def test_the_estimator_refuses_in_one_line(bad: Any) -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    mine = csaligner.CSAligner(epochs=1, batch_size=4, dim=3)
    for call in (lambda: mine.fit(bad, x), lambda: mine.fit(x, bad), lambda: mine.transform_image(x)):
        with pytest.raises(CSAlignerError) as caught:
            call()
        assert str(caught.value).isprintable()


@given(n=st.integers(2, 7), scale=st.sampled_from((1e-6, 1.0, 1e6)), seed=seeds)
@few
def test_the_estimator_gives_unit_rows_for_what_can_be_trained_on(n: int, scale: float, seed: int) -> None:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) * scale
    mine = csaligner.CSAligner(epochs=1, batch_size=4, dim=3).fit(x.numpy(), x.flip(1).half().clamp(-6e4, 6e4))
    rows = torch.from_numpy(mine.transform_image(x))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(n), rtol=1e-4, atol=1e-4)


def test_losses_over_tokens_and_modalities_refuse_in_one_line() -> None:
    x = torch.randn(2, 3, 4)
    for call in (
        lambda: token_cauchy_schwarz(x, x[:1]),
        lambda: token_cauchy_schwarz(x[0], x),
        lambda: token_cauchy_schwarz(x, torch.full_like(x, math.nan)),
        lambda: ModalitiesLoss()({"a": x[0]}, 10.0),
        lambda: ModalitiesLoss()({"a": x[0], "b": x[0][:, :2]}, 10.0),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).isprintable()
