"""Trainer: determinism, resuming, checkpoints, monitoring and errors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from csaligner.adapters.aligner import Aligner
from csaligner.checks import CSAlignerError, InputError
from csaligner.config import TrainConfig, build_config
from csaligner.losses import objective
from csaligner.ops.reference import id_weights
from csaligner.training.memory import Embeddings
from csaligner.training.samplers import PairSampler
from csaligner.training.terms import ScheduledObjective
from csaligner.training.trainer import METRICS, Hooks, Trainer
from csaligner.types import PairedFeatures
from tests.support.features import make_pairs

SMALL = {"epochs": 6, "batch_size": 16, "evaluate_every": 1}


def features(n: int = 40, seed: int = 0) -> PairedFeatures:
    return make_pairs(n, (8, 8), captions=2, seed=seed, noise=0.5)


def config(**settings: object) -> TrainConfig:
    adapter = {"hidden": 16, "dropout": 0.2}
    return build_config(TrainConfig, SMALL | {"image_adapter": adapter, "text_adapter": adapter} | settings)


def train(c: TrainConfig, folder: Path | None = None, hooks: Hooks | None = None) -> Aligner:
    torch.manual_seed(c.seed)
    model = Aligner.fit_start(features(), c)
    Trainer(model, PairSampler(features(), c.batch_size, c.captions, c.seed), c, folder, hooks).fit()
    return model


def same(a: Aligner, b: Aligner) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    assert same(train(config()), train(config()))
    assert not same(train(config()), train(config(seed=1)))


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [1, 4, 9, 17])
def test_an_interrupted_run_ends_at_the_same_bits(at: int, tmp_path: Path) -> None:
    """Dropout, optimiser state, schedule, data order and scale are resumed."""

    def stop(step: int, total: int, values: Mapping[str, float]) -> None:
        if step == at:
            raise Stop

    whole = train(config(), tmp_path / "whole")
    with pytest.raises(Stop):
        train(config(), tmp_path / "broken", Hooks(report=stop))
    assert same(whole, train(config(), tmp_path / "broken"))
    lines = [(tmp_path / run / METRICS).read_text().splitlines() for run in ("whole", "broken")]
    for a, b in zip(*lines, strict=True):
        one, other = json.loads(a), json.loads(b)
        for name in ("steps_per_second", "data_wait"):
            one.pop(name), other.pop(name)
        assert one == other


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(config(), tmp_path)
    steps: list[int] = []
    again = train(config(), tmp_path, Hooks(report=lambda step, total, values: steps.append(step)))
    assert steps == []
    assert same(first, again)


def test_the_best_checkpoint_by_validation_is_kept_and_patience_stops(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.3, 0.2, 0.4, 0.4])
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(model: Aligner) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"score": next(scores)}

    model = train(config(patience=2, monitor="score"), tmp_path, Hooks(evaluate))
    assert len(seen) == 4  # two evaluations without improvement
    assert all(torch.equal(model.state_dict()[k], v) for k, v in seen[1].items())
    best = Aligner.load(tmp_path / "checkpoints" / "best")
    assert same(best, model)
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"best", "latest", "step_6", "step_12"}


def test_training_lowers_the_objective_and_cs_closes_the_gap() -> None:
    def centroid(model: Aligner) -> float:
        with torch.no_grad():
            x, y = model.eval()(features().image, features().text)
        return float((x.mean(0) - y.mean(0)).norm())

    losses: list[float] = []
    hooks = Hooks(report=lambda step, total, values: losses.append(values["loss/total"]))
    long = {"epochs": 40, "lr": 3e-3, "start": {"kind": "identity"}}
    ours = train(config(**long), hooks=hooks)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    alone = train(config(**long, objective={"terms": {"info_nce": 1.0}, "logit_scale": 30.0}))
    assert centroid(ours) < centroid(alone)


def test_values_in_use_are_logged_and_follow_their_schedules(tmp_path: Path) -> None:
    objective = {
        "terms": {"info_nce": 1.0, "cauchy_schwarz": {"start": 0.0, "end": 2.0}},
        "bandwidth": {"start": 1.0, "end": 0.5},
        "logit_scale": {"start": 10.0, "end": 20.0},
        "learn_logit_scale": False,
    }
    model = train(config(objective=objective), tmp_path)
    logged = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert logged[-1]["weight/cauchy_schwarz"] == pytest.approx(2.0)
    assert logged[-1]["bandwidth"] == pytest.approx(0.5)
    assert logged[-1]["logit_scale"] == pytest.approx(20.0, rel=1e-5)
    assert float(model.logit_scale) == pytest.approx(20.0, rel=1e-5)
    assert logged[0]["weight/cauchy_schwarz"] < logged[-1]["weight/cauchy_schwarz"]


def test_bf16_trains_close_to_fp32() -> None:
    full, half = train(config()), train(config(precision="bf16"))
    with torch.no_grad():
        cosine = (full.encode_text(features().text) * half.encode_text(features().text)).sum(dim=1)
    assert float(cosine.min()) > 0.98
    assert not same(full, half)


def test_a_loss_that_is_not_finite_stops_with_words() -> None:
    with pytest.raises(CSAlignerError, match=r"step \d+.*\blr\b"):
        train(config(lr=1e30, epochs=20))


AUTO = {"terms": {"info_nce": 1.0, "cauchy_schwarz": "auto"}, "measure_every": 4}


@pytest.mark.parametrize(
    ("settings", "memory"),
    [({}, 0), ({}, 24), (AUTO, 0), (AUTO, 24)],
    ids=["plain", "memory", "auto", "auto and memory"],
)
def test_a_step_reads_the_device_twice(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], memory: int) -> None:
    """Every read makes the host wait for a GPU. `reference` is what a GPU runs up to 4,096 rows; the kernels for more
    rows read nothing (tests/ops/test_ahead_of_time.py). Found on a CPU, which takes a GPU's way to the weights of rows
    here: whether the rows are finite. The second read on a GPU, of all values of the step, is a copy that a CPU does
    not make; the norms of automatic weights, which are measured every few steps by a sweep for each term, are one more
    such copy.
    """
    monkeypatch.setattr(objective, "one_to_one", lambda ids_x, ids_y: False)
    monkeypatch.setattr(objective, "_kernel_weights", id_weights)
    reads: Counter[int] = Counter()
    step = 0

    class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.overloadpacket.__name__
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name == "index" else []
            waits = {"_local_scalar_dense", "is_nonzero", "equal", "_unique2", "nonzero", "masked_select"}
            reads[step] += name in waits or bool(masks)
            return function(*args, **(kwargs or {}))

    def report(number: int, total: int, values: Mapping[str, float]) -> None:
        nonlocal step
        step = number

    c = config(objective={"impl": "reference"} | settings, memory={"size": memory}, evaluate_every=100)
    with Reads():  # type: ignore[no-untyped-call]
        train(c, hooks=Hooks(report=report, warn=None))
    assert {reads[number] for number in range(5, step - 1)} == {1}


def test_an_unknown_monitor_names_what_there_is() -> None:
    with pytest.raises(InputError, match=r"'recall'.*score"):
        train(config(monitor="recall"), hooks=Hooks(lambda model: {"score": 1.0}))


def test_a_damaged_training_state_is_named(tmp_path: Path) -> None:
    train(config(), tmp_path)
    (tmp_path / "checkpoints" / "latest" / "trainer.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="latest"):
        train(config(), tmp_path)


def test_the_implementation_of_the_config_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match='"triton"'):
        train(config(objective={"impl": "triton"}))
    assert same(train(config(objective={"impl": "dense"})), train(config()))
    assert not same(train(config(objective={"impl": "tiled"})), train(config()))
    with pytest.raises(InputError, match=r"^objective.impl: .*tritium"):
        config(objective={"impl": "tritium"})


@pytest.mark.parametrize(("impl", "wanted"), [("triton", torch.bfloat16), ("tiled", torch.float32)])
def test_bf16_rows_reach_the_kernels_that_take_them(
    monkeypatch: pytest.MonkeyPatch, impl: str, wanted: torch.dtype
) -> None:
    seen = set()

    def looked(objective: ScheduledObjective, rows: Embeddings, *_: object) -> None:
        seen.update({rows.image.dtype, rows.text.dtype})
        raise KeyboardInterrupt

    monkeypatch.setattr(ScheduledObjective, "__call__", looked)
    with pytest.raises(KeyboardInterrupt):
        train(config(precision="bf16", objective={"impl": impl}))
    assert seen == {wanted}


@pytest.mark.parametrize(("sigma", "weight", "words"), [(0.15, 30.0, ["bandwidth", "pairs"]), (0.8, 0.01, [])])
def test_a_divergence_that_costs_the_pairs_is_named_in_one_line(
    sigma: float, weight: float, words: list[str], tmp_path: Path
) -> None:
    said: list[str] = []
    c = config(start={"kind": "random"}, dim=8, bandwidth=sigma, weight=weight, lr=0.02, epochs=30, evaluate_every=3)
    torch.manual_seed(0)
    model = Aligner.fit_start(features(), c)
    Trainer(model, PairSampler(features(), 40, "one", 0), c, tmp_path, Hooks(warn=said.append)).fit()
    assert len(said) == len(words)
    assert all(word in line and "\n" not in line for line, word in zip(said, words, strict=True))
    row = json.loads((tmp_path / METRICS).read_text().splitlines()[-1])
    assert {"batch/gap/cs", "batch/gap/pair_margin"} <= set(row)
