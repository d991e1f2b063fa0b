"""Results of a command on disk, without parts that differ between two uninterrupted runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# times, commit of the source tree (may change during a test), and checksums that include them
VOLATILE = {"steps_per_second", "data_wait", "seconds", "commit", "sha256"}
SECONDS = re.compile(r"<td[^>]*>[\d.]+ s</td>")


def without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_volatile(entry) for key, entry in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [without_volatile(entry) for entry in value]
    return value


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files, and the targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink()).encode()
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def records(folder: Path) -> dict[str, Any]:
    """Return files(), without the volatile fields of JSON."""
    found: dict[str, Any] = {}
    for name, content in files(folder).items():
        if name.endswith((".json", ".jsonl")):
            lines = content.splitlines() if name.endswith(".jsonl") else [content]
            found[name] = [without_volatile(json.loads(line)) for line in lines]
        elif not name.endswith(".html"):  # generated from the JSON file, with times and commit
            found[name] = content
    return found


def index(folder: Path) -> dict[str, Any]:
    """Return the rows of both tables by id with their vectors, the calibration and the aligner, without LanceDB's
    random file names and version numbers."""
    from csaligner.search.lance_table import Items

    columns = ["id", "path", "text", "caption", "owner", "source", "size", "mtime_ns", "sha256", "vector", "raw"]
    table = Items.open(folder).to_arrow(columns).sort_by("id")
    measured = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return {
        "rows": table.to_pylist(),
        "measured": {key: measured[key] for key in ("calibration", "bias")},
        "manifest": manifest,
        "aligner": files(folder / "aligner"),
        "left": sorted(p.name for p in folder.iterdir() if p.name not in {".lock", "calibration.json"}),
    }


def quickstart(folder: Path) -> dict[str, Any]:
    """Return the state of the index, the run and the store, the features by encoder and content (a kill changes how
    they are divided into files), and the names of what is left. The output folder is replaced in paths."""
    from safetensors.numpy import load_file

    found: dict[str, Any] = {"index": index(folder / "index"), "run": records(folder / "run")}
    found["store"] = files(folder / "store")
    found["features"] = features = {}
    for part in sorted((folder / "features").rglob("part-*.safetensors")):
        tensors = load_file(part)
        for key, row in zip(tensors["keys"], tensors["features"], strict=True):
            features[part.parent.name, key.tobytes()] = row.tobytes()
    found["left"] = sorted(p.name for p in folder.iterdir())
    found["index"]["manifest"] = without_volatile(found["index"]["manifest"])  # its checksum includes paths
    return dict(moved(found, str(folder)))


def moved(value: Any, folder: str) -> Any:
    """Replace the folder in all strings."""
    if isinstance(value, dict):
        return {key: moved(entry, folder) for key, entry in value.items()}
    if isinstance(value, list):
        return [moved(entry, folder) for entry in value]
    return value.replace(folder, "OUT") if isinstance(value, str) else value


STATE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "embed": lambda folder: dict(files(folder)),
    "train": records,
    "index": index,
    "compare": records,
    "quickstart": quickstart,
}
NEEDS = {"index": "lancedb", "compare": "optuna", "quickstart": "lancedb"}
