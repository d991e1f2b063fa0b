"""Run folder format: config.yaml, run.json, checkpoints and result files."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
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
from .urls import is_url

CONFIG, RECORD, RESULTS, REPORT = "config.yaml", "run.json", "results.json", "report.html"
CHECKPOINTS = "checkpoints"
START_MODEL, GATED_MODEL = f"{CHECKPOINTS}/start", f"{CHECKPOINTS}/gated"  # the chosen start; scaled by the gate
START, OURS = "closed-form start", "CS-Aligner"  # method names in results.json
MORE_STORES = ("val", "unpaired_images", "unpaired_texts")  # keys of run.json in addition to `store`
OWNER = ErrorContext("run", "restore the file, or choose another folder and train again")


@contextmanager
def claimed(out: Path, config: TrainConfig, pairs: Store, stores: Mapping[str, Any], processes: int) -> Iterator[None]:
    """Call claim_run and lock `out` against other processes."""
    with only_writer(out):
        claim_run(out, config, pairs, stores, processes)
        yield


def claim_run(out: Path, config: TrainConfig, pairs: Store, stores: Mapping[str, Any], processes: int = 1) -> None:
    """Create the run folder `out` (config.yaml, run.json), or check that it holds the same run.

    pairs: the training store; stores: paths and checksums of all stores, from TrainingData.record(). Raises InputError
    if `out` contains a run with other settings or stores, or anything else.
    """
    if out.is_dir():
        recover(out)
    if (out / RECORD).exists():
        _check_same(out, config, stores)
        return
    if out.exists() and (not out.is_dir() or any(p.name not in {CONFIG, *LOCKS} for p in out.iterdir())):
        raise InputError(f"out: {out} exists and is not a csaligner run; choose an empty or a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / CONFIG, dump_config(config))
    record: dict[str, Any] = {"processes": processes, "config_sha256": sha256_of(out / CONFIG)}
    record |= {"encoders": {side: asdict(info) for side, info in pairs.encoders.items()}, "data": describe(pairs)}
    write_sealed(out / RECORD, provenance(config.seed) | record | dict(stores))


def _check_same(out: Path, config: TrainConfig, stores: Mapping[str, Any]) -> None:
    record, existing = read_record(out), read_config(out)
    if existing != config:
        changed = [k for k, v in config.model_dump().items() if existing.model_dump()[k] != v]
        raise InputError(f"out: {out} holds a run with other settings ({', '.join(changed)}); choose another folder")
    if record["store_sha256"] != stores["store_sha256"]:
        raise InputError(f"out: {out} holds a run on another store ({record['store']}); choose another folder")
    for name in MORE_STORES:
        if _digests(record, name) != _digests(stores, name):
            raise InputError(f"out: {out} holds a run with other stores for {name}; choose another folder")


def _digests(record: Mapping[str, Any], name: str) -> list[str]:
    return [entry["sha256"] for entry in record.get(name, [])]


def read_record(run: Path) -> dict[str, Any]:
    """Read run.json: provenance, stores and their SHA-256, encoders. Raises InputError if missing or damaged."""
    return read_sealed(run / RECORD, OWNER, _record, made_by="`csaligner train`")


def _record(value: dict[str, Any]) -> dict[str, Any]:
    """Check the types of run.json. Raises TypeError or ValueError."""
    _ = Path(value["store"]), dict(value.get("versions", {})), _encoders(value)
    return value


def _encoders(record: Mapping[str, Any]) -> Mapping[Modality, EncoderInfo]:
    return checked(dict[Modality, EncoderInfo], record.get("encoders", {}))


def training_store(run: Path) -> Store:
    """Open the store of a run: where it was, at its URL, or moved together with the run, recognised by its SHA-256.

    Moved with the run: next to the run folder, or next to the folder that contains it. Raises InputError if there is
    none.
    """
    record = read_record(run)
    if is_url(record["store"]):
        return Store.open(record["store"])
    recorded = Path(record["store"])
    if recorded.is_dir():
        return Store.open(recorded)
    for folder in list(run.resolve().parents)[:2]:
        near = folder / recorded.name
        if (near / MANIFEST).is_file() and sha256_of(near / MANIFEST) == record.get("store_sha256"):
            return Store.open(near)
    raise InputError(f"run: the store of {run}, {recorded}, does not exist; give the moved store with --val-data")


def describe(store: Store) -> dict[str, Any]:
    """Describe the training data for run.json and model cards: name, attribution, numbers of images and captions."""
    images, captions = store.counts.get("train", (0, 0))
    return {"name": store.dataset, "attribution": store.attribution, "images": images, "captions": captions}


def write_metrics(run: Path, metrics: Mapping[str, float], seconds: float, warnings: Sequence[str] = ()) -> None:
    """Add the validation metrics of the checkpoint of model_folder to run.json, the seconds of training, which are
    added to those of earlier calls, and the warnings of training, if any."""
    record = read_record(run)
    done = record.get("metrics") == metrics and "seconds" in record
    if not done:
        total = round(record.get("seconds", 0.0) + seconds, 3)
        said = {"warnings": list(warnings)} if warnings else {}
        write_sealed(run / RECORD, record | {"metrics": metrics, "seconds": total} | said)


def read_config(run: Path) -> TrainConfig:
    """Read the settings of a run; runs of versions without the gate were not gated.

    Raises InputError if config.yaml was changed after training started."""
    wanted = read_record(run).get("config_sha256")
    if wanted is not None and (not (run / CONFIG).is_file() or sha256_of(run / CONFIG) != wanted):
        raise damaged(run / CONFIG, OWNER)
    config = load_config(TrainConfig, run / CONFIG)
    return config if "gate" in config.model_fields_set else config.model_copy(update={"gate": False})


def encoders_of(run: Path) -> Mapping[Modality, EncoderInfo]:
    """Return the encoders of the training features, by modality.

    Runs of csaligner 0.1 do not record them: their store is read, and the result is empty if it no longer exists.
    """
    record = read_record(run)
    recorded, store = _encoders(record), Path(record["store"])
    if recorded:
        return recorded
    if (store / MANIFEST).is_file():
        return read_manifest(store).encoders
    return Store.open(store).encoders if store.is_dir() else {}


def model_folder(run: Path) -> Path:
    """Return the model folder to use: as scaled by the gate, else the best checkpoint by the monitored metric, else the
    last. Raises InputError."""
    if (run / CHECKPOINTS / "latest").exists() and (run / GATED_MODEL).is_dir():
        return run / GATED_MODEL
    for name in ("best", "latest"):
        if (run / CHECKPOINTS / name).exists():
            return run / CHECKPOINTS / name
    raise InputError(f"run: {run} has no checkpoint; finish `csaligner train` first")


def provenance(seed: int) -> dict[str, Any]:
    """Return versions, hardware, commit and seed, stored with every result."""
    packages = ("csaligner", "torch", "numpy", "accelerate")
    return {
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "commit": _commit(),
        "seed": seed,
    }


def _commit() -> str | None:
    """Return the commit of the source tree, None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
