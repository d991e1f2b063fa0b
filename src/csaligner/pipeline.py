"""Main pipeline steps: embed_dataset, train, evaluate_run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from csaligner.adapters.aligner import Aligner, align
from csaligner.adapters.lora import LoRAAligner
from csaligner.adapters.untrained import Starts
from csaligner.distributed.processes import held_by_main, is_main, join_processes, world_size
from csaligner.evaluation.baselines import MeanCentring
from csaligner.evaluation.evaluate import evaluate
from csaligner.reporting.collect import report_data
from csaligner.reporting.record import MethodResult
from csaligner.reporting.report import write_report
from csaligner.reporting.tables import write_results_json
from csaligner.selection.start import choose_start
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.shard_maker import Encoders, ProgressCallback
from csaligner.store.store import Store
from csaligner.training.checkpoint import TrainerState, read_state
from csaligner.training.encoder_batches import TrainableStore
from csaligner.training.trainer import Hooks, Report, RunOptions, Trainer, silent
from csaligner.training.training_data import TrainingData, some_pairs

from .checks import check_choice
from .config import TrainConfig
from .datasets import open_dataset
from .encoders import IMAGE_ENCODER, TEXT_ENCODER, open_encoder
from .files import write_json
from .model import AlignedModel
from .run_folder import (
    CHECKPOINTS,
    OURS,
    REPORT,
    RESULTS,
    START,
    claimed,
    read_config,
    read_record,
    training_store,
    write_metrics,
)
from .types import Dataset, PairedFeatures, Split

SELECTION = "selection.json"  # what start.kind=chosen chose, and why


@dataclass(frozen=True)
class Run:
    """A trained model with its settings and history. With LoRA, `model` holds the adapters and `lora` adapters and
    encoders."""

    model: Aligner
    config: TrainConfig
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float | None = None
    lora: LoRAAligner | None = None


def embed_dataset(
    data: str | Dataset,
    out: Path,
    *,
    encoders: tuple[str | None, str | None] = (IMAGE_ENCODER, TEXT_ENCODER),
    options: Mapping[str, Any] | None = None,
    settings: ExtractSettings | None = None,
    progress: ProgressCallback | None = None,
    runner: Literal["local", "ray"] = "local",
    ray_actors: int | None = None,
) -> Store:
    """Embed a dataset into a feature store at `out`; a finished store of the same data and encoders is reused.

    data: a dataset, or a name or path for open_dataset (docs/data.md); options: arguments of its reader; encoders:
    names of the image and the text encoder, None to skip a modality; settings: see store.embed.embed. runner: "local"
    (this process and its torchrun ranks) or "ray" with `ray_actors` actors.
    """
    check_choice("runner", runner, ("local", "ray"))
    change = settings is not None and settings.update
    if change:
        check_choice("runner", runner, ("local",))
    dataset = open_dataset(data, **(options or {})) if isinstance(data, str) else data
    if runner == "ray":
        from csaligner.store.ray_runner import embed_on_ray

        make = partial(open_encoders, encoders)
        return embed_on_ray(dataset, make, out, settings, progress, actors=ray_actors)
    opened = open_encoders(encoders)
    if change:
        from csaligner.store.update import update as update_store

        return update_store(dataset, opened.image, opened.text, out, settings, progress)[0]
    return embed(dataset, opened.image, opened.text, out, settings, progress)


def open_encoders(names: tuple[str | None, str | None]) -> Encoders:
    """Open the image and the text encoder by name; None skips a modality."""
    image, text = names
    return Encoders(open_encoder(image, "image") if image else None, open_encoder(text, "text") if text else None)


def train(
    data: Store | TrainingData,
    config: TrainConfig,
    out: Path,
    report: Report = silent,
    options: RunOptions | None = None,
) -> Run:
    """Train on the train split and select the checkpoint on val; an interrupted run in `out` is resumed.

    data: a store of pairs, or several stores (see TrainingData). Under torchrun or accelerate launch, every process
    calls this function and the main process writes. Raises InputError if `out` contains a run with other settings or
    stores.
    """
    data = data if isinstance(data, TrainingData) else TrainingData(data)
    data.check()
    join_processes()
    with held_by_main(lambda: claimed(out, config, data.pairs, data.record(), world_size())):
        return _train(data, config, out, (report, options))


def _train(data: TrainingData, config: TrainConfig, out: Path, how: tuple[Report, RunOptions | None]) -> Run:
    """Train in a claimed run folder."""
    report, options = how
    store = data.pairs
    torch.manual_seed(config.seed)
    first = some_pairs(store, "train", config.start.images)
    encoders = store.image_fingerprint, store.text_fingerprint
    model = Aligner.fit_start(first, config, encoders, starts_of(first, config, out if is_main() else None))
    del first
    if config.lora is not None:
        return _train_lora(data, config, out, model, how)
    val = data.validation(config) if is_main() else None
    hooks = Hooks((lambda m: validate(m, val)) if val else no_metrics, report)
    started = time.perf_counter()
    state = Trainer(model, data.sampler(config), config, out, hooks, options).fit()
    return _finished(out, state, Run(model, config, state.history, time.perf_counter() - started))


def starts_of(pairs: PairedFeatures, config: TrainConfig, out: Path | None = None) -> Starts | None:
    """Return the starts selected by cross-validation if start.kind is chosen, else None.

    out: folder in which to record the choice."""
    if config.start.kind != "chosen":
        return None
    choice = choose_start(pairs, config, seed=config.seed)
    if out is not None:
        write_json(out / SELECTION, {"start": choice.record()})
    return choice.starts


def _train_lora(
    data: TrainingData, config: TrainConfig, out: Path, heads: Aligner, how: tuple[Report, RunOptions | None]
) -> Run:
    """Train with LoRA in the store's encoders; each validation encodes the val split again."""
    assert config.lora is not None
    tuned = TrainableStore.open(data.pairs, config.lora)
    model = LoRAAligner(heads, tuned.towers, config.lora)
    val = tuned.with_store(data.val) if data.val is not None else tuned

    def evaluate_now(m: LoRAAligner) -> dict[str, float]:
        return validate(m.heads, val.features(None if data.val is not None else "val", config.val_images))

    hooks = Hooks(evaluate_now if is_main() else no_metrics, how[0])
    started = time.perf_counter()
    state = Trainer(model, tuned.sampler(config, data), config, out, hooks, how[1]).fit()
    return _finished(out, state, Run(heads, config, state.history, time.perf_counter() - started, model))


def _finished(out: Path, state: TrainerState, run: Run) -> Run:
    """Record the validation metrics of the best checkpoint, else of the last."""
    if is_main() and state.history:
        chosen = next((row for row in state.history if row.get("step") == state.best_step), state.history[-1])
        found = {name.removeprefix("val/"): value for name, value in chosen.items() if name.startswith("val/")}
        write_metrics(out, {name: value for name, value in found.items() if math.isfinite(value)})
    return run


def no_metrics(model: Any) -> dict[str, float]:
    """Return no metrics: evaluation hook of processes other than the main one."""
    return {}


def validate(model: Aligner, val: PairedFeatures) -> dict[str, float]:
    """Return all metrics of evaluation.evaluate, and `score` (see TrainConfig.monitor)."""
    metrics = evaluate(align(model, val), intervals=False).metrics
    return metrics | {"score": (metrics["mean_recall@10"] + metrics["mixed_image_recall@10"]) / 2}


def evaluate_run(run: Path, split: Split, store: Store | None = None) -> list[MethodResult]:
    """Evaluate a finished run and the untrained baselines on a split of its store, or of `store` (same encoders).

    Writes results.json and report.html in the run folder."""
    record = {k: v for k, v in read_record(run).items() if k not in {"encoders", "data", "metrics"}}
    trained_on = Path(record["store"])
    store = store or training_store(run)
    config = read_config(run)
    model, features = load_run(run, store, split)
    own = Store.open(trained_on) if trained_on.exists() else store  # `store` may have only a test split
    train_features, test = some_pairs(own, "train", config.start.images), store.features(split)
    start = Aligner.fit_start(train_features, config, starts=starts_of(train_features, config)).eval()
    aligned = {START: align(start, test), OURS: align(model, features)}
    history = read_state(run / CHECKPOINTS / "latest").history
    ours = measure(OURS, config.seed, aligned[OURS], Run(model, config, history))
    free = baselines(train_features, test, config.seed, aligned[START])
    results = [replace(r, split=split) for r in [*free, ours]]
    write_results_json(results, run / RESULTS, provenance=record)
    write_report(report_data(store, config, results, aligned, record), run / REPORT)
    return results


def load_run(run: Path, store: Store, split: Split) -> tuple[Aligner, PairedFeatures]:
    """Return the adapters of a finished run and their input features for a split: those of the store or, with LoRA,
    of the run's encoders. Raises InputError if the store was made with other encoders."""
    model = AlignedModel.open(run)
    store.require(image=model.trained_on("image"), text=model.trained_on("text"))
    if not model.lora:
        return model.aligner, store.features(split)
    return model.aligner, TrainableStore(store, {side: model.encoder(side) for side in model.lora}).features(split)


def measure(name: str, seed: int, features: PairedFeatures, run: Run | None = None) -> MethodResult:
    """Return all metrics with their confidence intervals."""
    found = evaluate(features)
    history = run.history if run else []
    return MethodResult(name, seed, found.metrics, found.intervals, history, run.seconds if run else None)


def baselines(
    train_features: PairedFeatures, test: PairedFeatures, seed: int, start: PairedFeatures
) -> list[MethodResult]:
    """Measure baselines without training: raw features and mean-centring if the dimensions agree, and the untrained
    baseline.

    start: test pairs aligned with Aligner.fit_start.
    """
    results = []
    if test.image.shape[1] == test.text.shape[1]:
        results.append(measure("raw", seed, test))
        results.append(measure("mean-centring", seed, MeanCentring.fit(train_features).transform(test)))
    results.append(measure(START, seed, start))
    return results
