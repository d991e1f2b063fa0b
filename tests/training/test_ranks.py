"""Training on several processes: equal gradients, weights and metrics as on one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csaligner.adapters.aligner import Aligner
from csaligner.checks import CSAlignerError, InputError
from csaligner.config import TrainConfig, build_config
from csaligner.distributed.loss import RING_TERMS
from csaligner.distributed.processes import is_main, on_main, rank, wait_for_all, world_size
from csaligner.training.samplers import PairSampler, UnpairedRows, UnpairedSampler
from csaligner.training.trainer import METRICS, Hooks, Trainer
from csaligner.types import Batch, PairedFeatures, PairedTokens, Sampler, TokenRows
from tests.ranks import on_ranks
from tests.support.features import make_pairs

Numbers = dict[str, Tensor]
EVERYTHING: dict[str, Any] = {
    "captions": "all",
    "objective": {
        "terms": {"info_nce": 1.0, "cauchy_schwarz": "auto", "mmd": 0.5},
        "bandwidth": "median",
        "measure_every": 2,
    },
    "memory": {"size": 6, "max_age": 3},
}


MIXTURE = {"exchange": "ring", "bandwidth": ["median", "median-cross", 0.7]}
RING: dict[str, Any] = {"captions": "all", "objective": EVERYTHING["objective"] | MIXTURE}
TOKENS: dict[str, Any] = {
    "objective": {"terms": {"info_nce": 1.0, "cauchy_schwarz": 0.5, "token_cauchy_schwarz": 2.0}},
}


def features(n: int = 11, with_tokens: bool = False) -> PairedFeatures:
    """Features whose last batch of 3 leaves one of four ranks without a row."""
    g = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 4, (3 * n,), generator=g)
    sets = [
        TokenRows(torch.randn(int(part.sum()), dim, generator=g, dtype=torch.float64), part)
        for part, dim in ((counts[:n], 6), (counts[n:], 5))
    ]
    tokens = PairedTokens(*sets) if with_tokens else None
    return replace(make_pairs(n, (6, 5), captions=2, noise=0.1, dtype=torch.float64), tokens=tokens)


def config(epochs: int, batch_size: int, dropout: float = 0.0, **settings: Any) -> TrainConfig:
    adapter = {"hidden": 4, "dropout": dropout}
    given = {"image_adapter": adapter, "text_adapter": adapter, "epochs": epochs, "batch_size": batch_size, "lr": 1e-2}
    return build_config(TrainConfig, given | {"evaluate_every": 1, "patience": 2, "monitor": "score"} | settings)


def train(c: TrainConfig, folder: Path | None = None, fails_in: int | None = None) -> Aligner:
    torch.manual_seed(rank())  # all processes must get the main process's weights
    model = Aligner.fit_start(features(), c).double()
    pairs = PairSampler(features(with_tokens=c.objective.sees_tokens), c.batch_size, c.captions)
    sampler = Breaking(UnpairedSampler(pairs, UnpairedRows(features().image + 1, 5)), fails_in)
    calls[0] = 0
    Trainer(model, sampler, c, folder, Hooks(evaluate=score)).fit()
    return model


class Stop(Exception):
    pass


class Breaking:
    """Sampler that fails in one epoch."""

    def __init__(self, sampler: Sampler, epoch: int | None) -> None:
        self._sampler, self._epoch = sampler, epoch
        self.batches_per_epoch = sampler.batches_per_epoch

    def epoch(self, number: int) -> Iterator[Batch]:
        if number == self._epoch:
            raise Stop
        return self._sampler.epoch(number)


calls = [0]


def score(model: Aligner) -> dict[str, float]:
    """Validation on the main process; the second value is the best."""
    assert is_main()
    calls[0] += 1
    return {"score": float(min(calls[0], 2))}


def numbers(model: Aligner) -> tuple[Numbers, Numbers]:
    """Return gradients of the last step, and weights."""
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return grads, dict(model.state_dict())


def check_numbers(c: TrainConfig, grads: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for ours, wanted in zip(numbers(train(c)), (grads, weights), strict=True):
        assert set(ours) == set(wanted)
        for name, value in wanted.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_of_one_step_are_those_of_one_process(size: int) -> None:
    """Compares gradients, since Adam is invariant to their scale."""
    c = config(1, 11)
    on_ranks(size, check_numbers, c, *numbers(train(c)))


@pytest.mark.parametrize(("size", "batch_size"), [(2, 11), (3, 4), (4, 3)])
def test_the_token_level_term_is_that_of_one_process(size: int, batch_size: int) -> None:
    c = config(1, batch_size, **TOKENS)
    on_ranks(size, check_numbers, c, *numbers(train(c)))


@pytest.mark.parametrize("size", [2, 4])
def test_weights_after_uneven_batches_are_those_of_one_process(size: int) -> None:
    c = config(2, 4, **EVERYTHING)
    on_ranks(size, check_numbers, c, *numbers(train(c)))


@pytest.mark.parametrize("size", [2, 4])
def test_around_the_ring_the_weights_are_those_of_one_process_that_gathers(size: int) -> None:
    """The last batch leaves a rank of four without a row."""
    gathers = RING | {"objective": RING["objective"] | {"exchange": "gather"}}
    on_ranks(size, check_numbers, config(2, 4, **RING), *numbers(train(config(2, 4, **gathers))))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"terms": {"info_nce": 1.0, "energy": 1.0}, "exchange": "ring"}, "energy"),
        ({"terms": {"info_nce": 1.0, "token_cauchy_schwarz": 1.0}, "exchange": "ring"}, "token"),
        ({"exchange": "none"}, "exchange"),
    ],
)
def test_what_the_ring_does_not_know_is_refused_before_training(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        config(1, 4, objective=settings)


def test_the_ring_takes_no_memory_and_the_terms_that_its_loss_takes() -> None:
    with pytest.raises(InputError, match="memory"):
        config(1, 4, **RING, memory={"size": 6})
    terms = dict.fromkeys(RING_TERMS, 1.0)
    assert config(1, 4, objective={"terms": terms, "exchange": "ring"}).objective.exchange == "ring"


def check_resume(folder: Path) -> None:
    """With dropout: each process resumes its own random state."""
    c = config(4, 4, dropout=0.3, **EVERYTHING)
    whole = train(c, folder / "whole")
    with pytest.raises(Stop):
        train(c, folder / "broken", fails_in=2)
    wait_for_all()
    again = train(c, folder / "broken").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.state_dict().items())


def test_an_interrupted_run_on_two_processes_ends_at_the_same_bits(tmp_path: Path) -> None:
    on_ranks(2, check_resume, tmp_path)
    runs = [(tmp_path / run / METRICS).read_text().splitlines() for run in ("whole", "broken")]
    assert len(runs[0]) == len(runs[1]) == 4
    last = json.loads(runs[0][-1])
    assert {"weight/cauchy_schwarz", "bandwidth", "logit_scale", "data_wait"} <= set(last)


def values_on_every_rank() -> None:
    assert on_main(lambda: {"a": [rank(), None, 0.1]}) == {"a": [0, None, 0.1]}
    assert on_main(lambda: "é") == "é"
    assert world_size() == 2


def test_all_processes_hear_the_main_one() -> None:
    on_ranks(2, values_on_every_rank)


def fails_on_the_main_process() -> int:
    if rank():
        raise AssertionError("only the main process may be asked")
    raise InputError("no such thing")


def errors_on_every_rank() -> None:
    with pytest.raises(InputError, match="no such thing"):
        on_main(fails_on_the_main_process)
    with pytest.raises(ZeroDivisionError if is_main() else CSAlignerError, match="zero"):
        on_main(lambda: 1 / 0)


def test_an_error_of_the_main_process_is_raised_on_all() -> None:
    on_ranks(2, errors_on_every_rank)
