"""The command diagnose: vectors of any two models, compared without training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from csaligner.checks import InputError, check_choice

from .common import MEASURE, Json, app, err, print_json

if TYPE_CHECKING:
    from csaligner.reporting.diagnosis import TextTable
    from csaligner.spaces.diagnosis import Diagnosis
    from csaligner.spaces.space import Space

Names = Annotated[
    str | None, typer.Option(help="Names of the spaces, separated by commas, for example eeg,image; or a choice.")
]
KindKey = Annotated[
    str | None, typer.Option(help="Column that names the space of each row; default: kind, modality, space or type.")
]
VectorKey = Annotated[str | None, typer.Option(help="Column or array of the vectors; several separated by commas.")]


@app.command(rich_help_panel=MEASURE)
def diagnose(  # noqa: PLR0913, PLR0917  (options of a command)
    sources: Annotated[
        list[str],
        typer.Argument(
            help="One source with all spaces or one per space: .npy, .npz, .safetensors, .parquet, Qdrant points "
            "(.json, .jsonl), a LanceDB table (NAME.lance), an index, a store, or the URL of one of these.",
        ),
    ],
    names: Names = None,
    kind_key: KindKey = None,
    vector_key: VectorKey = None,
    id_key: Annotated[str | None, typer.Option(help="Column of ids; rows with equal ids are pairs.")] = None,
    pairs: Annotated[
        str,
        typer.Option(help="Which rows are pairs: row i and row i, equal ids, or none.", metavar="[auto|rows|ids|none]"),
    ] = "auto",
    bandwidth: Annotated[float, typer.Option(help="Kernel bandwidth sigma of D_CS, on unit vectors.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of samples and permutations.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Also write a page.")] = None,
    shift: Annotated[
        Path | None, typer.Option(help="Also write the mean of each space (.npz), which centring subtracts.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(help="Also write the spaces as feature files for `csaligner import`, to a new folder."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="A run folder or its URL: say whether these new rows still fit its aligner.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is wrong between vectors of two models, and what mends it; nothing is trained or embedded."""
    from csaligner.spaces.columns import Keys
    from csaligner.spaces.mend import next_command
    from csaligner.spaces.read import read_spaces

    check_choice("pairs", pairs, ("auto", "rows", "ids", "none"))
    spaces = read_spaces(sources, listed(names), Keys(kind_key, listed(vector_key), id_key))
    if len(spaces) > 2 and (shift or save):
        raise InputError(
            f"names: {', '.join(s.name for s in spaces)} are more than two; choose two for --shift and --save"
        )
    if against is not None:
        _drift(against, spaces, pairs, seed, as_json=as_json)
        return
    again = _repeated({"--names": names, "--kind-key": kind_key, "--vector-key": vector_key, "--id-key": id_key})
    records = []
    for both in itertools.combinations(spaces, 2):
        found = _diagnosed(both, pairs, bandwidth, seed, (shift, save))
        records.append(found.record() | {"command": next_command(found, sources, again)})
    _show(records, html, as_json=as_json)


def _diagnosed(
    spaces: tuple[Space, Space], pairs: str, bandwidth: float, seed: int, files: tuple[Path | None, Path | None]
) -> Diagnosis:
    """Diagnose two spaces and write the files: of the shift, and the folder of the spaces."""
    from csaligner.spaces.diagnosis import SHIFT
    from csaligner.spaces.diagnosis import diagnose as run_diagnosis
    from csaligner.spaces.mend import save_spaces, write_shift
    from csaligner.spaces.space import pair_rows

    shift, save = files
    found = run_diagnosis(*spaces, pairing=pairs, bandwidth=bandwidth, seed=seed)  # type: ignore[arg-type]
    if shift:
        write_shift(found, shift)
        if found.verdict != SHIFT:
            err.print(
                f"shift: {shift} is written, but subtracting the means alone does not mend these spaces",
                style="yellow",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
    if save:
        at = pair_rows(*spaces, pairs)  # type: ignore[arg-type]
        save_spaces(spaces, (None, None) if at is None else (at[0].tolist(), at[1].tolist()), save)
    return found


def _show(records: Sequence[dict[str, Any]], html: Path | None, *, as_json: bool) -> None:
    from csaligner.reporting.diagnosis import write_diagnosis

    if html:
        write_diagnosis(records, html)
    if as_json:
        print_json(finite(records[0] if len(records) == 1 else records))
        return
    for record in records:
        _print(record, Console())


def _drift(run: str, spaces: Sequence[Space], pairs: str, seed: int, *, as_json: bool) -> None:
    from csaligner.remote import local
    from csaligner.spaces.drift import drift

    if len(spaces) != 2:
        raise InputError(f"names: {', '.join(s.name for s in spaces)}; choose two for --against, in the run's order")
    found = drift(local(run), *spaces, pairing=pairs, seed=seed)  # type: ignore[arg-type]
    if as_json:
        print_json(finite(found.record()))
        return
    for name, tested in found.divergences.items():
        print(f"D_CS of new and training {name} rows: {tested.value:.3g} (labels permuted up to {tested.high:.3g})")
    Console().print(found.sentence, highlight=False, soft_wrap=True, markup=False)


def _print(record: dict[str, Any], console: Console) -> None:
    from csaligner.reporting.diagnosis import diagnosis_tables

    print_tables(diagnosis_tables(record), console)
    for line in (record["sentence"], record["command"]):
        if line:
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def print_tables(tables: Sequence[TextTable], console: Console) -> None:
    for found in tables:
        table = Table(title=found.title, title_justify="left", box=SIMPLE_HEAD)
        for number, head in enumerate(found.heads):
            table.add_column(Text(head), justify="right" if number else "left", overflow="fold")
        for row in found.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        if found.note:
            console.print(f"{found.note}\n", highlight=False, soft_wrap=True, markup=False)


def listed(words: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip()) if words else ()


def _repeated(options: dict[str, str | None]) -> list[str]:
    return [word for name, value in options.items() if value is not None for word in (name, value)]


def finite(value: Any) -> Any:
    """Replace NaN and infinity by None, which JSON has."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
