"""Training objective: unpaired rows, memory, automatic weights and bandwidth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.checks import InputError
from csaligner.config import MemoryConfig, ObjectiveConfig, TrainConfig, build_config, load_config
from csaligner.losses.objective import Objective
from csaligner.ops.bandwidth import resolve_bandwidth
from csaligner.training.memory import Embeddings, MemoryBank
from csaligner.training.terms import ScheduledObjective

SCALE = torch.tensor(10.0, dtype=torch.float64)
BOTH = {"info_nce": 1.0, "cauchy_schwarz": 1.0}


def rows(n: int, m: int | None = None, seed: int = 0, first_id: int = 0) -> Embeddings:
    g = torch.Generator().manual_seed(seed)
    m = n if m is None else m
    image, text = (normalize(torch.randn(k, 5, generator=g, dtype=torch.float64), dim=1) for k in (n, m))
    ids = first_id + torch.arange(max(n, m))
    return Embeddings(image, text, ids[:n], ids[:m])


def joined(*parts: Embeddings) -> Embeddings:
    columns = zip(*((p.image, p.text, p.image_ids, p.text_ids) for p in parts), strict=True)
    image, text, image_ids, text_ids = (torch.cat(column) for column in columns)
    return Embeddings(image, text, image_ids, text_ids)


def unpaired(e: Embeddings) -> Embeddings:
    return Embeddings(e.image, e.text, torch.full_like(e.image_ids, -1), torch.full_like(e.text_ids, -1))


def live(memory: dict[str, int] | None = None, **settings: Any) -> ScheduledObjective:
    return ScheduledObjective(build_config(ObjectiveConfig, settings), build_config(MemoryConfig, memory or {}))


def direct(terms: dict[str, float], e: Embeddings, sigma: float = 0.5) -> dict[str, float]:
    found = Objective(terms, bandwidth=sigma)(e.image, e.text, SCALE, e.image_ids, e.text_ids)
    return {name: float(value) for name, value in found.terms.items()}


def test_unpaired_rows_change_the_divergence_alone_and_need_not_match_in_number() -> None:
    alone, beside = rows(6), joined(rows(6), unpaired(rows(4, 3, seed=1)))
    without, _ = live(terms=BOTH)(alone, SCALE, 0.0, 0)
    with_them, _ = live(terms=BOTH)(beside, SCALE, 0.0, 0)
    assert float(with_them.terms["info_nce"]) == pytest.approx(float(without.terms["info_nce"]), abs=1e-12)
    everything = Embeddings(beside.image, beside.text, torch.arange(10), torch.arange(9))
    wanted = direct({"cauchy_schwarz": 1.0}, everything)["cauchy_schwarz"]  # each row counts one
    assert float(with_them.terms["cauchy_schwarz"]) == pytest.approx(wanted, abs=1e-12)
    assert abs(wanted - float(without.terms["cauchy_schwarz"])) > 1e-3


def test_unpaired_rows_count_what_the_config_says() -> None:
    beside = joined(rows(6), unpaired(rows(4, 3, seed=1)))
    heavy, _ = live(terms=BOTH, unpaired_weight=2.0)(beside, SCALE, 0.0, 0)
    twice = joined(beside, unpaired(rows(4, 3, seed=1)))
    wanted, _ = live(terms=BOTH)(twice, SCALE, 0.0, 0)
    for name in BOTH:
        assert float(heavy.terms[name]) == pytest.approx(float(wanted.terms[name]), abs=1e-12)


def test_a_memory_equals_a_larger_batch_while_weights_rest() -> None:
    """Three batches, the third with the first two in memory; only the third has gradients."""
    parts = [rows(4, seed=s, first_id=4 * s) for s in range(3)]
    objective = live({"size": 8, "max_age": 5}, terms=BOTH)
    for step in (0, 1):
        objective(parts[step], SCALE, 0.0, step)
    leaves = [side.clone().requires_grad_() for side in (parts[2].image, parts[2].text)]
    third = Embeddings(leaves[0], leaves[1], parts[2].image_ids, parts[2].text_ids)
    loss, _ = objective(third, SCALE, 0.0, 2)
    big = joined(*parts)
    assert float(loss.terms["info_nce"]) == pytest.approx(direct({"info_nce": 1.0}, parts[2])["info_nce"], abs=1e-12)
    wanted = direct({"cauchy_schwarz": 1.0}, big)["cauchy_schwarz"]
    assert float(loss.terms["cauchy_schwarz"]) == pytest.approx(wanted, abs=1e-12)
    loss.total.backward()  # type: ignore[no-untyped-call]
    x, y = big.image.clone().requires_grad_(), big.text.clone().requires_grad_()
    cs = Objective({"cauchy_schwarz": 1.0})(x, y, SCALE, big.image_ids, big.text_ids).total
    small_x, small_y = (side.detach().clone().requires_grad_() for side in leaves)
    nce = Objective({"info_nce": 1.0})(small_x, small_y, SCALE).total
    (cs + nce).backward()  # type: ignore[no-untyped-call]
    for leaf, whole, small in ((leaves[0], x, small_x), (leaves[1], y, small_y)):
        assert leaf.grad is not None
        assert whole.grad is not None
        assert small.grad is not None
        torch.testing.assert_close(leaf.grad, whole.grad[8:] + small.grad, rtol=0, atol=1e-12)


def test_the_memory_forgets_by_size_and_by_age() -> None:
    bank = MemoryBank(size=6, max_age=2)
    for step in range(3):
        bank.add(rows(4, seed=step, first_id=4 * step), step)
    held = bank.with_memory(rows(1, seed=9, first_id=99), step=3)
    assert held.image_ids.tolist() == [99, 6, 7, 8, 9, 10, 11]  # the newest six
    held = bank.with_memory(rows(1, seed=9, first_id=99), step=4)
    assert held.text_ids.tolist() == [99, 8, 9, 10, 11]  # step 1 is three steps old
    again = MemoryBank(size=6, max_age=2)
    again.restore(bank.tensors())
    assert torch.equal(again.with_memory(rows(1), 4).image, bank.with_memory(rows(1), 4).image)
    assert len(bank.with_memory(rows(1), 9).image) == 1
    off = MemoryBank(size=0, max_age=2)
    off.add(rows(4), 0)
    assert len(off) == 0


def gradient(terms: dict[str, float], e: Embeddings) -> Tensor:
    x, y = e.image.clone().requires_grad_(), e.text.clone().requires_grad_()
    Objective(terms)(x, y, SCALE, e.image_ids, e.text_ids).total.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert y.grad is not None
    return torch.cat([x.grad, y.grad])


def test_auto_weights_give_the_stated_share_and_are_measured_every_so_many_steps() -> None:
    settings: dict[str, Any] = {
        "terms": {"info_nce": 1.0, "cauchy_schwarz": "auto", "mmd": 0.3},
        "balance": {"fraction": 0.4, "momentum": 0.5},
        "measure_every": 2,
    }
    objective = live(**settings)
    weights = [objective(rows(8, seed=step), SCALE, 0.0, step)[1] for step in range(3)]
    logged = [w["weight/cauchy_schwarz"] for w in weights]
    norms = [
        [float(gradient({name: 1.0}, rows(8, seed=step)).norm()) for name in ("info_nce", "cauchy_schwarz")]
        for step in (0, 2)
    ]
    assert logged[0] == pytest.approx(0.4 * norms[0][0] / norms[0][1], rel=1e-9)
    assert logged[1] == logged[0]
    averages = [(a + b) / 2 for a, b in zip(*norms, strict=True)]
    assert logged[2] == pytest.approx(0.4 * averages[0] / averages[1], rel=1e-9)
    assert weights[2]["weight/mmd"] == 0.3
    again = live(**settings)
    again.restore(objective.state(), objective.memory.tensors())
    assert again(rows(8), SCALE, 0.0, 3)[1]["weight/cauchy_schwarz"] == logged[2]


def test_the_bandwidth_in_use_is_logged_and_the_median_is_kept_between_measurements() -> None:
    median = live(terms=BOTH, bandwidth="median", measure_every=2)
    sigma = [median(rows(8, seed=step), SCALE, 0.0, step)[1]["bandwidth"] for step in range(3)]
    both = [torch.cat([rows(8, seed=step).image, rows(8, seed=step).text]) for step in (0, 2)]
    wanted = [float(torch.pdist(x).median()) / 2**0.5 for x in both]
    assert sigma == pytest.approx([wanted[0], wanted[0], wanted[1]])
    tied, logged = live(terms=BOTH, bandwidth="temperature")(rows(8), SCALE, 0.0, 0)
    assert logged["bandwidth"] == pytest.approx(10**-0.5)
    assert float(tied.terms["cauchy_schwarz"]) == pytest.approx(direct(BOTH, rows(8), 10**-0.5)["cauchy_schwarz"])


def test_a_mixture_sums_its_kernels_before_the_log() -> None:
    e = rows(8)
    cross = resolve_bandwidth("median-cross", e.image, e.text)
    loss, logged = live(terms=BOTH, bandwidth=[0.2, "median-cross", {"start": 1.0, "end": 3.0}])(e, SCALE, 0.5, 0)
    sigmas = [0.2, cross, 2.0]
    assert [logged[f"bandwidth/{i}"] for i in range(3)] == pytest.approx(sigmas)

    def log_mean(a: Tensor, b: Tensor) -> Tensor:
        squares = (a[:, None] - b).square().sum(dim=2)
        return torch.stack([(-squares / (2 * s**2)).exp() for s in sigmas]).sum(dim=0).mean().log()

    wanted = log_mean(e.image, e.image) + log_mean(e.text, e.text) - 2 * log_mean(e.image, e.text)
    torch.testing.assert_close(loss.terms["cauchy_schwarz"], wanted, rtol=1e-10, atol=0)


def test_measured_medians_are_part_of_the_state() -> None:
    first, again = (live(terms=BOTH, bandwidth=["median", "median-cross"], measure_every=5) for _ in range(2))
    _, logged = first(rows(8), SCALE, 0.0, 0)
    again.restore(first.state(), {})
    assert again(rows(8, seed=1), SCALE, 0.0, 1)[1] == logged
    assert logged["bandwidth/0"] != logged["bandwidth/1"]


@pytest.mark.parametrize("terms", [{"cauchy_schwarz": "auto"}, {"info_nce": "auto"}, {"info_nce": 0.0, "mmd": "auto"}])
def test_auto_needs_info_nce_to_weigh_against(terms: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"objective.*auto.*info_nce"):
        build_config(TrainConfig, {"objective": {"terms": terms}})


def test_auto_is_set_by_a_word() -> None:
    words = ["objective.terms.info_nce=1.0", "objective.terms.cauchy_schwarz=auto", "memory.size=64"]
    found = load_config(TrainConfig, None, words)
    assert found.objective.terms == {"info_nce": 1.0, "cauchy_schwarz": "auto"}
    assert found.memory.size == 64
    with pytest.raises(InputError, match=r"objective.terms.mmd: "):
        load_config(TrainConfig, None, ["objective.terms.mmd=atuo"])
