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


STATE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "embed": lambda folder: dict(files(folder)),
    "train": records,
    "index": index,
    "compare": records,
}
NEEDS = {"index": "lancedb", "compare": "optuna"}
