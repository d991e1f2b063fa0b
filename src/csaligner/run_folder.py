"""The file format of a run folder: config.yaml, run.json, the checkpoints, and the names of the results."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from csaligner.store.manifest import MANIFEST, read_manifest
from csaligner.store.store import Store

from .checks import InputError
from .config import TrainConfig, dump_config, load_config
from .files import recover, sha256_of, write_text
from .integrity import ErrorContext, damaged, read_sealed, write_sealed
from .locks import NAMES as LOCKS
from .locks import only_writer
from .parsing import checked
from .types import EncoderInfo, Modality

CONFIG, RECORD, RESULTS, REPORT = "config.yaml", "run.json", "results.json", "report.html"
CHECKPOINTS = "checkpoints"
START, OURS = "closed-form start", "CS-Aligner"  # names of methods in results.json
MORE_STORES = ("val", "unpaired_images", "unpaired_texts")  # keys of run.json beside `store`
OWNER = ErrorContext("run", "put the file back, or choose another folder and train again")


@contextmanager
def claimed(out: Path, config: TrainConfig, pairs: Store, stores: Mapping[str, Any], processes: int) -> Iterator[None]:
    """claim_run, with `out` held against other processes."""
    with only_writer(out):
        claim_run(out, config, pairs, stores, processes)
        yield


def claim_run(out: Path, config: TrainConfig, pairs: Store, stores: Mapping[str, Any], processes: int = 1) -> None:
    """Make `out` this run's folder: write config.yaml and run.json, or check that they are the same.

    pairs: the store that is trained on; stores: TrainingData.record(), where it and the others are. Raises InputError
    where `out` holds a run with other settings or other stores, or anything but a run.
    """
    if out.is_dir():
        recover(out)
    if (out / RECORD).exists():
        _check_same(out, config, stores)
        return
    if out.exists() and (not out.is_dir() or any(p.name not in {CONFIG, *LOCKS} for p in out.iterdir())):
        raise InputError(f"out: {out} exists and holds no csaligner run; choose an empty or a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / CONFIG, dump_config(config))
    record: dict[str, Any] = {"processes": processes, "config_sha256": sha256_of(out / CONFIG)}
    record |= {"encoders": {side: asdict(info) for side, info in pairs.encoders.items()}, "data": describe(pairs)}
    write_sealed(out / RECORD, provenance(config.seed) | record | dict(stores))


def _check_same(out: Path, config: TrainConfig, stores: Mapping[str, Any]) -> None:
    record, theirs = read_record(out), read_config(out)
    if theirs != config:
        changed = [k for k, v in config.model_dump().items() if theirs.model_dump()[k] != v]
        raise InputError(f"out: {out} holds a run with other settings ({', '.join(changed)}); choose another folder")
    if record["store_sha256"] != stores["store_sha256"]:
        raise InputError(f"out: {out} holds a run on another store ({record['store']}); choose another folder")
    for name in MORE_STORES:
        if _digests(record, name) != _digests(stores, name):
            raise InputError(f"out: {out} holds a run with other stores as {name}; choose another folder")


def _digests(record: Mapping[str, Any], name: str) -> list[str]:
    return [entry["sha256"] for entry in record.get(name, [])]


def read_record(run: Path) -> dict[str, Any]:
    """What claim_run wrote to run.json: provenance, stores and their SHA-256, encoders. Raises InputError."""
    return read_sealed(run / RECORD, OWNER, _record, made_by="`csaligner train`")


def _record(value: dict[str, Any]) -> dict[str, Any]:
    """TypeError or ValueError where what others read from it has another type."""
    _ = Path(value["store"]), dict(value.get("versions", {})), _encoders(value)
    return value


def _encoders(record: Mapping[str, Any]) -> Mapping[Modality, EncoderInfo]:
    return checked(dict[Modality, EncoderInfo], record.get("encoders", {}))


def describe(store: Store) -> dict[str, Any]:
    """What run.json says of the training data, for model cards: name, attribution, images and captions."""
    images, captions = store.counts.get("train", (0, 0))
    return {"name": store.dataset, "attribution": store.attribution, "images": images, "captions": captions}


def write_metrics(run: Path, metrics: Mapping[str, float]) -> None:
    """Add to run.json the validation metrics of the checkpoint that model_folder returns."""
    record = read_record(run)
    if record.get("metrics") != metrics:
        write_sealed(run / RECORD, record | {"metrics": metrics})


def read_config(run: Path) -> TrainConfig:
    """The settings of a run. Raises InputError where config.yaml was changed since."""
    wanted = read_record(run).get("config_sha256")
    if wanted is not None and (not (run / CONFIG).is_file() or sha256_of(run / CONFIG) != wanted):
        raise damaged(run / CONFIG, OWNER)
    return load_config(TrainConfig, run / CONFIG)


def encoders_of(run: Path) -> Mapping[Modality, EncoderInfo]:
    """The encoders whose features the run was trained on, by modality.

    Runs of csaligner 0.1 do not record them: then those of the run's store, and none where the store is gone.
    """
    record = read_record(run)
    recorded, store = _encoders(record), Path(record["store"])
    if recorded:
        return recorded
    if (store / MANIFEST).is_file():
        return read_manifest(store).encoders
    return Store.open(store).encoders if store.is_dir() else {}


def model_folder(run: Path) -> Path:
    """The checkpoint of a run to use: the one that the monitor chose, else the last."""
    for name in ("best", "latest"):
        if (run / CHECKPOINTS / name).exists():
            return run / CHECKPOINTS / name
    raise InputError(f"run: {run} holds no checkpoint yet; run `csaligner train` to its end first")


def provenance(seed: int) -> dict[str, Any]:
    """Versions, hardware, commit and seed, to be stored beside every result."""
    packages = ("csaligner", "torch", "numpy", "accelerate")
    return {
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "commit": _commit(),
        "seed": seed,
    }


def _commit() -> str | None:
    """The commit of the source tree this package runs from, None for an installed one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
