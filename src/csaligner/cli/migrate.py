"""The command migrate: a new embedding model's queries on the old index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from csaligner.checks import InputError, check_choice

from .common import EXPORT, Json, app, err, print_json
from .spaces import KindKey, Names, VectorKey, listed

if TYPE_CHECKING:
    from csaligner.spaces.migration import Migration
    from csaligner.spaces.space import Space
    from csaligner.spaces.unpaired import UnpairedStart

FORMATS = ("npz", "onnx", "safetensors", "sentence-transformers")


@app.command(rich_help_panel=EXPORT)
def migrate(  # noqa: PLR0913, PLR0917  (options of a command)
    sources: Annotated[
        list[str],
        typer.Argument(help="A sample embedded by both models: NEW OLD, or one source with both; see diagnose."),
    ],
    out: Annotated[Path | None, typer.Option(help="New folder for the adapter; default: only measure.")] = None,
    index: Annotated[
        str | None, typer.Option(help="All vectors of the old collection, to measure at its size; see diagnose.")
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="Formats of the adapter, separated by commas.", metavar="[npz|onnx|safetensors|sentence-transformers]"
        ),
    ] = "npz",
    encoder: Annotated[
        str | None, typer.Option(help="sentence-transformers: the new model, bundled:... or hf:..., which is included.")
    ] = None,
    names: Names = "new,old",
    kind_key: KindKey = None,
    vector_key: VectorKey = None,
    id_key: Annotated[str | None, typer.Option(help="Column of ids; rows with equal ids are one item.")] = None,
    pairs: Annotated[
        str,
        typer.Option(
            help="Which rows are one item: row i and row i, or equal ids. none: match the two by their structure, if "
            "there are no pairs.",
            metavar="[auto|rows|ids|none]",
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the held-out items.")] = 0,
    as_json: Json = False,
) -> None:
    """Search an old index with a new model's queries: fit the query-side adapter; nothing is re-embedded."""
    from csaligner.spaces.columns import Keys
    from csaligner.spaces.read import read_spaces

    check_choice("pairs", pairs, ("auto", "rows", "ids", "none"))
    formats = _formats(format, encoder, out)
    spaces = read_spaces(sources, listed(names), Keys(kind_key, listed(vector_key), id_key))
    for line in filter(None, (space.ignored for space in spaces)):
        err.print(line, highlight=False, soft_wrap=True, markup=False)
    if len(spaces) != 2:
        raise InputError(f"names: {', '.join(s.name for s in spaces)}; choose two, the new model first")
    found = _found((spaces[0], spaces[1]), index, pairs, seed)
    if out is not None:
        from csaligner.export.migration import export_migration
        from csaligner.spaces.unpaired import UnpairedStart

        if isinstance(found, UnpairedStart) and not found.known:
            raise InputError(f"pairs: {found.sentence} {out} is not written.")
        for path in export_migration(found, out, formats, encoder):
            err.print(str(path), highlight=False)
    if as_json:
        print_json(found.record())
    else:
        _print(found)


def _formats(format: str, encoder: str | None, out: Path | None) -> tuple[str, ...]:
    """Return the formats. Raises InputError if one is unknown, lacks something, or if `out` exists."""
    formats = listed(format)
    for each in formats:
        check_choice("format", each, FORMATS)
    if ("sentence-transformers" in formats) != (encoder is not None):
        raise InputError(
            "encoder: --format sentence-transformers needs --encoder, the new model, and no other format does"
        )
    if out is not None and "onnx" in formats:
        from csaligner.export.export import require_onnx

        require_onnx()
    if out is not None and out.exists():
        raise InputError(f"out: {out} exists; choose another folder or delete it")
    return formats


def _found(spaces: tuple[Space, Space], index: str | None, pairs: str, seed: int) -> Migration | UnpairedStart:
    from csaligner.spaces.migration import migrate as run_migration
    from csaligner.spaces.read import read_space
    from csaligner.spaces.unpaired import align_unpaired

    if pairs != "none":
        whole = None if index is None else read_space(index, "index")
        return run_migration(*spaces, index=whole, pairing=pairs, seed=seed)  # type: ignore[arg-type]
    if index is not None:
        raise InputError("index: needs pairs to measure with; leave out --index or --pairs none")
    return align_unpaired(*spaces, seed=seed)


def _print(found: Migration | UnpairedStart) -> None:
    from csaligner.spaces.unpaired import WHEN_NOT, UnpairedStart

    console, lines = Console(), [found.sentence]
    if isinstance(found, UnpairedStart):
        lines.append(WHEN_NOT)
    else:
        table = Table(box=SIMPLE_HEAD)
        for head in ("", "recall@1", "recall@10", "neighbours@10"):
            table.add_column(head, justify="right" if head else "left")
        labels = {"chosen": f"chosen: {found.chosen}", "old queries": f"{found.names[1]}'s own queries"}
        for name, q in found.quality.items():
            table.add_row(labels.get(name, name), *(f"{100 * v:.1f} %" for v in (q.recall1, q.recall10, q.neighbours)))
        console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
