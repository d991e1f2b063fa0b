"""Embed, train, evaluate: config in, record out. Callable from a notebook; the command line adds nothing but words."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from csaligner.adapters.aligner import Aligner, align
from csaligner.adapters.lora import MARK, LoRAAligner
from csaligner.distributed.processes import held_by_main, is_main, join_processes, world_size
from csaligner.evaluation.baselines import MeanCentring
from csaligner.evaluation.evaluate import evaluate
from csaligner.reporting.collect import report_data
from csaligner.reporting.record import MethodResult
from csaligner.reporting.report import write_report
from csaligner.reporting.tables import write_results_json
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.manifest import MANIFEST, read_manifest
from csaligner.store.shard_maker import Encoders, ProgressCallback
from csaligner.store.store import Store
from csaligner.training.checkpoint import read_state
from csaligner.training.encoder_batches import TrainableStore
from csaligner.training.trainer import Hooks, Report, RunOptions, Trainer, silent
from csaligner.training.training_data import TrainingData, some_pairs

from .checks import InputError, check_choice
from .config import TrainConfig, dump_config, load_config
from .datasets import open_dataset
from .encoders import open_encoder
from .files import recover, sha256_of, write_text
from .integrity import ErrorContext, damaged, read_sealed, write_sealed
from .locks import NAMES as LOCKS
from .locks import only_writer
from .types import Dataset, EncoderInfo, Modality, PairedFeatures, Split

IMAGE_ENCODER = "bundled:efficientnet-lite0"
TEXT_ENCODER = "bundled:all-MiniLM-L6-v2"
START, OURS = "closed-form start", "CS-Aligner"
MORE_STORES = ("val", "unpaired_images", "unpaired_texts")  # of TrainingData.record
CONFIG, RECORD, RESULTS, REPORT = "config.yaml", "run.json", "results.json", "report.html"
OWNER = ErrorContext("run", "put the file back, or choose another folder and train again")


@dataclass(frozen=True)
class Run:
    """A trained model with what it was trained from. With LoRA, `model` is the heads and `lora` the whole."""

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
    """Features of a dataset in a store at `out`; a finished store of the same data and encoders is reused.

    data: a name or a path for open_dataset (docs/data.md), or a dataset; options: for its reader; encoders: of the
    pictures and the texts, None for a store without that side; settings: for store.embed.embed. runner: this
    process (and the other ranks under torchrun), or Ray actors, ray_actors of them.
    """
    check_choice("runner", runner, ("local", "ray"))
    dataset = open_dataset(data, **(options or {})) if isinstance(data, str) else data
    if runner == "ray":
        from csaligner.store.ray_runner import embed_on_ray

        make = partial(open_encoders, encoders)
        return embed_on_ray(dataset, make, out, settings, progress, actors=ray_actors)
    opened = open_encoders(encoders)
    return embed(dataset, opened.image, opened.text, out, settings, progress)


def open_encoders(names: tuple[str | None, str | None]) -> Encoders:
    """The encoders of those names, each as the modality that it is wanted for."""
    image, text = names
    return Encoders(open_encoder(image, "image") if image else None, open_encoder(text, "text") if text else None)


def train(
    data: Store | TrainingData,
    config: TrainConfig,
    out: Path,
    report: Report = silent,
    options: RunOptions | None = None,
) -> Run:
    """Train on the train split, choose on val; an interrupted run in `out` goes on where it stopped.

    data: a store of pairs, or that with others (see TrainingData). Under torchrun or accelerate launch every process
    calls this; the first of them writes. Raises InputError where `out` holds a run of other settings or other stores.
    """
    data = data if isinstance(data, TrainingData) else TrainingData(data)
    data.check()
    join_processes()
    with held_by_main(lambda: claimed(out, config, data)):
        return _train(data, config, out, (report, options))


def _train(data: TrainingData, config: TrainConfig, out: Path, how: tuple[Report, RunOptions | None]) -> Run:
    """As train, in a folder that this run holds."""
    report, options = how
    store = data.pairs
    torch.manual_seed(config.seed)
    first = some_pairs(store, "train", config.start.images)
    model = Aligner.fit_start(first, config, (store.image_fingerprint, store.text_fingerprint))
    del first
    if config.lora is not None:
        return _train_lora(data, config, out, model, how)
    val = data.validation(config) if is_main() else None
    hooks = Hooks((lambda m: validate(m, val)) if val else no_metrics, report)
    started = time.perf_counter()
    state = Trainer(model, data.sampler(config), config, out, hooks, options).fit()
    return Run(model, config, state.history, time.perf_counter() - started)


def _train_lora(
    data: TrainingData, config: TrainConfig, out: Path, heads: Aligner, how: tuple[Report, RunOptions | None]
) -> Run:
    """As train, with the store's encoders inside the model; validation encodes anew each time."""
    assert config.lora is not None
    tuned = TrainableStore.open(data.pairs, config.lora)
    model = LoRAAligner(heads, tuned.towers, config.lora)
    val = tuned.with_store(data.val) if data.val is not None else tuned

    def evaluate_now(m: LoRAAligner) -> dict[str, float]:
        return validate(m.heads, val.features(None if data.val is not None else "val", config.val_images))

    hooks = Hooks(evaluate_now if is_main() else no_metrics, how[0])
    started = time.perf_counter()
    state = Trainer(model, tuned.sampler(config, data), config, out, hooks, how[1]).fit()
    return Run(heads, config, state.history, time.perf_counter() - started, model)


def no_metrics(model: Any) -> dict[str, float]:
    """The evaluation of a process that does not evaluate."""
    return {}


def validate(model: Aligner, val: PairedFeatures) -> dict[str, float]:
    """All metrics of evaluation.evaluate, and `score`: see TrainConfig.monitor."""
    metrics = evaluate(align(model, val), intervals=False).metrics
    return metrics | {"score": (metrics["mean_recall@10"] + metrics["mixed_image_recall@10"]) / 2}


def evaluate_run(run: Path, split: Split, store: Store | None = None) -> list[MethodResult]:
    """Metrics of a finished run on a split of its store (or of another store of the same encoders), with the free
    baselines beside it. Also written to results.json and report.html in the run folder."""
    record = read_record(run)
    trained_on = Path(record["store"])
    store = store or Store.open(trained_on)
    config = read_config(run)
    model, theirs = load_run(run, store, split)
    own = Store.open(trained_on) if trained_on.exists() else store  # a store may hold a test split alone
    train_features, test = some_pairs(own, "train", config.start.images), store.features(split)
    start = Aligner.fit_start(train_features, config).eval()
    aligned = {START: align(start, test), OURS: align(model, theirs)}
    history = read_state(run / "checkpoints" / "latest").history
    ours = measure(OURS, config.seed, aligned[OURS], Run(model, config, history))
    results = [replace(r, split=split) for r in [*baselines(train_features, test, config), ours]]
    write_results_json(results, run / RESULTS, provenance=record)
    write_report(report_data(store, config, results, aligned, record), run / REPORT)
    return results


def load_run(run: Path, store: Store, split: Split) -> tuple[Aligner, PairedFeatures]:
    """The adapters of a finished run, and the features of a split that they take: the store's own, or with LoRA those
    of the run's encoders. Raises InputError where the store was made by other encoders."""
    folder, config = model_folder(run), read_config(run)
    model = Aligner.load(folder)
    image, text = (print_.removesuffix(MARK) if print_ else None for print_ in _fingerprints(model))
    store.require(image=image, text=text)
    if config.lora is None:
        return model, store.features(split)
    tuned = TrainableStore.open(store, config.lora)
    return LoRAAligner.load(folder, tuned.towers).heads, tuned.features(split)


def _fingerprints(model: Aligner) -> tuple[str | None, str | None]:
    return model.config.image_encoder, model.config.text_encoder


def measure(name: str, seed: int, features: PairedFeatures, run: Run | None = None) -> MethodResult:
    """All metrics with their intervals, as one record."""
    found = evaluate(features)
    history = run.history if run else []
    return MethodResult(name, seed, found.metrics, found.intervals, history, run.seconds if run else None)


def baselines(train_features: PairedFeatures, test: PairedFeatures, config: TrainConfig) -> list[MethodResult]:
    """What costs no training: raw features and mean-centring where the dimensions agree, and the closed-form
    start of the adapters."""
    results = []
    if test.image.shape[1] == test.text.shape[1]:
        results.append(measure("raw", config.seed, test))
        results.append(measure("mean-centring", config.seed, MeanCentring.fit(train_features).transform(test)))
    start = Aligner.fit_start(train_features, config).eval()
    results.append(measure(START, config.seed, align(start, test)))
    return results


@contextmanager
def claimed(out: Path, config: TrainConfig, data: TrainingData) -> Iterator[None]:
    """Hold `out` against other processes, as this run's folder."""
    with only_writer(out):
        claim_run(out, config, data)
        yield


def claim_run(out: Path, config: TrainConfig, data: TrainingData) -> None:
    """Make `out` this run's folder: write config.yaml and run.json, or check that they are the same ones."""
    stores = data.record()
    if out.is_dir():
        recover(out)
    if (out / RECORD).exists():
        record = read_record(out)
        theirs = read_config(out)
        if theirs != config:
            changed = [k for k, v in config.model_dump().items() if theirs.model_dump()[k] != v]
            raise InputError(
                f"out: {out} holds a run with other settings ({', '.join(changed)}); choose another folder"
            )
        if record["store_sha256"] != data.pairs.sha256:
            raise InputError(f"out: {out} holds a run on another store ({record['store']}); choose another folder")
        for name in MORE_STORES:
            if _digests(record, name) != _digests(stores, name):
                raise InputError(f"out: {out} holds a run with other stores as {name}; choose another folder")
        return
    if out.exists() and (not out.is_dir() or any(p.name not in (CONFIG, *LOCKS) for p in out.iterdir())):
        raise InputError(f"out: {out} exists and holds no csaligner run; choose an empty or a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / CONFIG, dump_config(config))
    words = {"processes": world_size(), "config_sha256": sha256_of(out / CONFIG)}
    write_sealed(out / RECORD, provenance(config.seed) | words | stores)


def _digests(record: Mapping[str, Any], name: str) -> list[str]:
    return [entry["sha256"] for entry in record.get(name, [])]


def read_record(run: Path) -> dict[str, Any]:
    """What claim_run wrote to run.json: provenance, stores and their SHA-256. Raises InputError."""
    return read_sealed(run / RECORD, OWNER, _record, made_by="`csaligner train`")


def encoders_of(run: Path) -> Mapping[Modality, EncoderInfo]:
    """Who made the rows of the run's store, by side; empty where the store is gone."""
    store = Path(read_record(run)["store"])
    if (store / MANIFEST).is_file():
        return read_manifest(store).encoders
    return Store.open(store).encoders if store.is_dir() else {}


def _record(value: dict[str, Any]) -> dict[str, Any]:
    """TypeError or ValueError where what others read from it has another type."""
    _ = Path(value["store"]), dict(value.get("versions", {}))
    return value


def read_config(run: Path) -> TrainConfig:
    """The settings of a run. Raises InputError where config.yaml was changed since."""
    wanted = read_record(run).get("config_sha256")
    if wanted is not None and (not (run / CONFIG).is_file() or sha256_of(run / CONFIG) != wanted):
        raise damaged(run / CONFIG, OWNER)
    return load_config(TrainConfig, run / CONFIG)


def provenance(seed: int) -> dict[str, Any]:
    """Versions, hardware, commit and seed: the birth certificate beside every result."""
    packages = ("csaligner", "torch", "numpy", "accelerate")
    return {
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "commit": _commit(),
        "seed": seed,
    }


def model_folder(run: Path) -> Path:
    """The checkpoint of a run to use: the one that the monitor chose, else the last."""
    for name in ("best", "latest"):
        if (run / "checkpoints" / name).exists():
            return run / "checkpoints" / name
    raise InputError(f"run: {run} holds no checkpoint yet; run `csaligner train` to its end first")


def _commit() -> str | None:
    """The commit of the source tree this package runs from, None for an installed one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
