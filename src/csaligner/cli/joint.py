"""Training and evaluation of more than two named spaces, for the commands train and eval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from csaligner.checks import InputError

from .common import err, print_json
from .spaces import finite, listed, print_tables

if TYPE_CHECKING:
    from csaligner.config import TrainConfig
    from csaligner.spaces.space import Space

RECORD, ALIGNER, RESULTS, REPORT = "spaces.json", "aligner", "results.json", "report.html"
ARRAY_FILES = {".npy", ".safetensors"}  # read as one array, so they hold no named spaces
MARKS = ("csaligner.json", "run.json")  # of a store, and of a run of two modalities


def holds_spaces(data: Path) -> bool:
    """Return whether this is a file, or a folder of .npy files, and not a store."""
    return data.is_file() or (data.is_dir() and not (data / MARKS[0]).exists() and any(data.glob("*.npy")))


def is_joint(run: Path) -> bool:
    """Return whether a run folder is one of more than two spaces."""
    return (run / RECORD).is_file()


def train_spaces(data: str, names: str | None, config: TrainConfig, out: Path, *, quiet: bool) -> None:
    """Align the named spaces of a source and write aligner/, spaces.json, results.json and report.html to `out`."""
    from csaligner.files import write_json
    from csaligner.progress import progress
    from csaligner.run_folder import provenance
    from csaligner.spaces.joint import align_spaces
    from csaligner.urls import address

    if out.exists():
        raise InputError(f"out: {out} exists; choose another folder or delete it")
    spaces = _training_spaces(data, names)
    with progress(err, "train", quiet) as update:
        found = align_spaces(spaces, config, update)
    found.model.save(out / ALIGNER)
    settings = config.model_dump(mode="json", exclude_unset=True)
    about = {"data": address(data), "names": [space.name for space in spaces], "settings": settings}
    write_json(out / RECORD, provenance(config.seed) | about)
    _report(found.record(), out)
    err.print(found.sentence, highlight=False, soft_wrap=True)
    err.print(f"report: {out / REPORT}", highlight=False, soft_wrap=True)


def evaluate_spaces(run: Path, split: str, data: str | None, *, as_json: bool) -> None:
    """Measure a run again, on a split of its data or of `data`; writes results.json and report.html."""
    from csaligner.adapters.multi import MultiAligner
    from csaligner.parsing import parse_json
    from csaligner.spaces.joint import ALIGNED, Items, measure
    from csaligner.spaces.read import read_spaces
    from csaligner.urls import is_url

    about = parse_json((run / RECORD).read_text(encoding="utf-8"))
    model = MultiAligner.load(run / ALIGNER)
    source = data or about["data"]
    if not is_url(source) and not Path(source).exists():
        raise InputError(f"run: the data of {run}, {source}, do not exist; give them with --val-data")
    spaces = read_spaces([source], about["names"])
    for space in spaces:
        wanted = model.config.dims[space.name]
        if space.rows.shape[1] != wanted:
            raise InputError(f"{space.name}: {space.rows.shape[1]} dimensions, wanted {wanted} as in {run}")
    items = Items.of(spaces).split(split)  # type: ignore[arg-type]  # eval checks it
    pairs = measure({ALIGNED: model}, items)
    record = {"spaces": about["names"], "rows": {split: items.counts()}, "pairs": pairs, "sentence": ""}
    _report(record, run, show=not as_json)
    if as_json:
        print_json(json.loads((run / RESULTS).read_text(encoding="utf-8")))


def _training_spaces(data: str, names: str | None) -> Sequence[Space]:
    """Read at least three spaces. Raises InputError for fewer, which must be imported."""
    from csaligner.spaces.read import OneSpaceError, read_spaces

    what = "is a feature file, not a store"
    if Path(data).suffix.lower() not in ARRAY_FILES:
        try:
            spaces = read_spaces([data], listed(names))
        except OneSpaceError:
            what = "holds one space"
        else:
            if len(spaces) > 2:
                return spaces
            what = f"holds two spaces, {spaces[0].name} and {spaces[1].name}"
    raise InputError(
        f"train_data: {data} {what}; make a store first: csaligner import --image-features FILE --text-features FILE "
        "--out STORE (of one array (2, N, d): the same FILE twice, with --image-key 0 and --text-key 1)"
    )


def _report(record: dict[str, Any], out: Path, *, show: bool = True) -> None:
    from csaligner.files import write_json
    from csaligner.reporting.joint import joint_tables, write_joint_report

    write_json(out / RESULTS, finite(record))
    write_joint_report(record, out / REPORT)
    if show:
        print_tables(joint_tables(record), Console())
