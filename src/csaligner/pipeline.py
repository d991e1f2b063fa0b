"""Main pipeline steps: embed_dataset, train, evaluate_run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch

from csaligner.adapters.aligner import Aligner, align
from csaligner.adapters.lora import LoRAAligner
from csaligner.distributed.processes import held_by_main, is_main, join_processes, on_main, world_size
from csaligner.evaluation.baselines import MeanCentring
from csaligner.evaluation.evaluate import MAX_IMAGES, evaluate, sample_line
from csaligner.evaluation.held_out import METRIC, HeldOut
from csaligner.reporting.collect import report_data
from csaligner.reporting.record import MethodResult
from csaligner.reporting.report import write_report
from csaligner.reporting.tables import write_results_json
from csaligner.selection.run import Untrained, gated, start_of, untrained
from csaligner.selection.selection import Selection, read_selection
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.shard_maker import Encoders, ProgressCallback
from csaligner.store.store import Store
from csaligner.training.checkpoint import TrainerState, read_state
from csaligner.training.encoder_batches import TrainableStore
from csaligner.training.trainer import Hooks, Report, RunOptions, Trainer, silent, warn_user
from csaligner.training.training_data import TrainingData, some_pairs

from .checks import check_choice
from .config import TrainConfig
from .datasets import open_dataset
from .encoders import IMAGE_ENCODER, TEXT_ENCODER, open_encoder
from .model import AlignedModel
from .names import Names
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
from .types import Dataset, EncoderInfo, Modality, PairedFeatures, Split
from .urls import is_url


@dataclass(frozen=True)
class Run:
    """A trained model with its settings and history. With LoRA, `model` holds the adapters and `lora` adapters and
    encoders. selection: what was chosen, None if the config fixes the start and has no gate. warnings: of training."""

    model: Aligner
    config: TrainConfig
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float | None = None
    lora: LoRAAligner | None = None
    selection: Selection | None = None
    warnings: Sequence[str] = ()


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
    like: Path | None = None,
) -> Run:
    """Train on the train split and select the checkpoint on val; an interrupted run in `out` is resumed.

    The start and the gate are selected as configured (selection/run.py) and recorded in selection.json.
    like: a run folder, whose choices of the start and the gate are used again, fitted to these data: a fraction of the
    time of choosing again.
    data: a store of pairs, or several stores (see TrainingData). Under torchrun or accelerate launch, every process
    calls this function and the main process writes. Raises InputError if `out` contains a run with other settings or
    stores.
    """
    data = data if isinstance(data, TrainingData) else TrainingData(data)
    data.check()
    join_processes()
    record = data.record() | ({"resume_from": str(like)} if like else {})
    with held_by_main(lambda: claimed(out, config, data.pairs, record, world_size())):
        return _train(data, config, out, (report, options), like)


def _train(
    data: TrainingData,
    config: TrainConfig,
    out: Path,
    how: tuple[Report, RunOptions | None],
    like: Path | None = None,
) -> Run:
    """Train in a claimed run folder."""
    report, options = how
    torch.manual_seed(config.seed)
    val = data.validation(config) if is_main() and config.lora is None else None
    val_images = on_main(lambda: len(val.image) if val else 0)
    resumes = options is not None and options.resume is not None
    earlier = read_selection(like) if like else None
    start = untrained(data, config, out, val_images, resumes=resumes, like=earlier)
    model = start.model
    if config.lora is not None:
        return _train_lora(data, config, out, start, how)
    said: list[str] = []
    hooks = Hooks((lambda m: validate(m, val)) if val else no_metrics, report, _warn_and(said))
    started = time.perf_counter()
    run = config if start.trains else config.model_copy(update={"epochs": 0})
    state = Trainer(model, data.sampler(config), run, out, hooks, options).fit()
    selection = gated(start, val, config, out)
    found = Run(model, config, state.history, time.perf_counter() - started, selection=selection, warnings=said)
    scaled = selection is not None and selection.gate is not None and selection.gate.scale < 1 and state.step > 0
    return _finished(out, state, found, validate(model, val) if scaled and val else None)


def _train_lora(
    data: TrainingData, config: TrainConfig, out: Path, start: Untrained, how: tuple[Report, RunOptions | None]
) -> Run:
    """Train with LoRA in the store's encoders; each validation encodes the val split again."""
    assert config.lora is not None
    heads = start.model
    tuned = TrainableStore.open(data.pairs, config.lora)
    model = LoRAAligner(heads, tuned.towers, config.lora)
    val = tuned.with_store(data.val) if data.val is not None else tuned

    def evaluate_now(m: LoRAAligner) -> dict[str, float]:
        split: Split | None = None if data.val is not None else "val"
        return validate(m.heads, val.features(split, config.val_images, heads.reads_states))

    said: list[str] = []
    hooks = Hooks(evaluate_now if is_main() else no_metrics, how[0], _warn_and(said))
    started = time.perf_counter()
    state = Trainer(model, tuned.sampler(config, data), config, out, hooks, how[1]).fit()
    seconds = time.perf_counter() - started
    return _finished(out, state, Run(heads, config, state.history, seconds, model, start.selection, said))


def _finished(out: Path, state: TrainerState, run: Run, metrics: Mapping[str, float] | None = None) -> Run:
    """Record the validation metrics of the model: as given, else of the best checkpoint, else of the last."""
    if is_main() and state.history:
        chosen = next((row for row in state.history if row.get("step") == state.best_step), state.history[-1])
        found = {name.removeprefix("val/"): value for name, value in chosen.items() if name.startswith("val/")}
        found = found if metrics is None else dict(metrics)
        finite = {name: value for name, value in found.items() if math.isfinite(value)}
        write_metrics(out, finite, run.seconds or 0.0, run.warnings)
    return run


def _warn_and(keep: list[str]) -> Callable[[str], None]:
    def warn(line: str) -> None:
        keep.append(line)
        warn_user(line)

    return warn


def no_metrics(model: Any) -> dict[str, float]:
    """Return no metrics: evaluation hook of processes other than the main one."""
    return {}


def validate(model: Aligner, val: PairedFeatures) -> dict[str, float]:
    """Return all metrics of evaluation.evaluate, and `score` (see TrainConfig.monitor)."""
    metrics = evaluate(align(model, val), intervals=False).metrics
    return metrics | {"score": (metrics["mean_recall@10"] + metrics["mixed_image_recall@10"]) / 2}


def evaluate_run(run: Path, split: Split, store: Store | None = None, *, full: bool = False) -> list[MethodResult]:
    """Evaluate a finished run and the untrained baselines on a split of its store, or of `store` (same encoders).

    Of more than 20,000 images, that many are measured, evenly spaced; full: all. Writes results.json and report.html
    in the run folder; both state a sample."""
    record = {k: v for k, v in read_record(run).items() if k not in {"encoders", "data", "metrics", "seconds"}}
    store = store or training_store(run)
    config = read_config(run)
    most = None if full else MAX_IMAGES
    model, features = load_run(run, store, split, most)
    there = is_url(record["store"]) or Path(record["store"]).exists()
    own = Store.open(record["store"]) if there else store  # `store` may have only a test split
    train_features = some_pairs(own, "train", config.start.images, config.reads_states)
    test = some_pairs(store, split, most, config.reads_states)
    start = start_of(run, train_features, config)
    aligned = {START: align(start, test), OURS: align(model, features)}
    history = read_state(run / CHECKPOINTS / "latest").history
    seconds = read_record(run).get("seconds")
    ours = measure(OURS, config.seed, aligned[OURS], Run(model, config, history, seconds))
    free = baselines(train_features, test, config.seed, aligned[START])
    results = [replace(r, split=split) for r in [*free, ours]]
    sampled = sample_of(results, store)
    if sampled is not None:
        record |= {"sample": sampled}
    write_results_json(results, run / RESULTS, provenance=record)
    chosen = read_selection(run)
    lines = [
        *([chosen.line_of(Names.of(config.names))] if chosen else []),
        *record.get("warnings", ()),
        *([sampled] if sampled else []),
    ]
    about = record | {"selection": "; ".join(lines), "rejected": chosen is not None and chosen.rejected}
    write_report(report_data(store, config, results, aligned, about), run / REPORT)
    return results


def sample_of(results: Sequence[MethodResult], store: Store) -> str | None:
    """Return the statement that results of evaluate_run are of a sample of the split, None if of all its images."""
    sample, images = int(results[-1].metrics["n_images"]), store.counts[cast(Split, results[-1].split)][0]
    return sample_line(sample, images) if sample < images else None


def held_out(results: Sequence[MethodResult], images: int, run: Run | None = None) -> HeldOut:
    """Return the result of evaluate_run in one sentence. images: number of images of the split, or more
    than were measured. run: whose result it is, to say whether its model is the untrained alignment."""
    images = min(images, int(results[-1].metrics["n_images"]))
    found = {result.name: result.metrics[METRIC] for result in results}
    part = {"train": "training", "val": "validation"}.get(results[-1].split, results[-1].split)
    if run is not None and _is_untrained(run.config, run.selection):
        return HeldOut(images, found[OURS], used="untrained", part=part)
    return HeldOut(images, found[OURS], {"untrained": found[START]}, part=part)


def equal_methods(run: Path) -> tuple[str, ...]:
    """Return the two methods of evaluate_run that are both the untrained alignment; () if the run keeps training."""
    return (START, OURS) if _is_untrained(read_config(run), read_selection(run)) else ()


def _is_untrained(config: TrainConfig, selection: Selection | None) -> bool:
    return config.epochs == 0 or (selection is not None and selection.rejected)


def load_run(run: Path, store: Store, split: Split, images: int | None = None) -> tuple[Aligner, PairedFeatures]:
    """Return the adapters of a finished run and their input features for a split: those of the store or, with LoRA,
    of the run's encoders. images: their maximum number, evenly spaced.

    Raises InputError if the store was made with other encoders."""
    model = AlignedModel.open(run)
    store.require(image=_encoder(model, "image"), text=_encoder(model, "text"))
    states = model.aligner.reads_states
    if not model.lora:
        return model.aligner, some_pairs(store, split, images, states)
    tuned = TrainableStore(store, {side: model.encoder(side) for side in model.lora})
    return model.aligner, tuned.features(split, images, states)


def _encoder(model: AlignedModel, side: Modality) -> EncoderInfo | str | None:
    """Return the encoder whose features the adapter was trained with; its fingerprint if nothing else is known."""
    info, fingerprint = model.infos.get(side), model.trained_on(side)
    return info if info is not None and info.fingerprint == fingerprint else fingerprint


def measure(name: str, seed: int, features: PairedFeatures, run: Run | None = None) -> MethodResult:
    """Return all metrics with their confidence intervals."""
    found = evaluate(features, max_images=None)
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
