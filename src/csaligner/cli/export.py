"""The command export: the adapters of a run in other file formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import EXPORT, app, err


@app.command(rich_help_panel=EXPORT)
def export(
    run: Annotated[str, typer.Option(help="A run folder or its URL.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    format: Annotated[
        str,
        typer.Option(help="Output format.", metavar="[safetensors|onnx|npz|sentence-transformers|hub]"),
    ] = "safetensors",
    licence: Annotated[str, typer.Option(help="SPDX licence name for the model card of the hub format.")] = "unknown",
) -> None:
    """Export the adapters of a run as safetensors, ONNX, NumPy arrays, a SentenceTransformer or a hub folder."""
    from csaligner.export.export import export as run_export
    from csaligner.remote import local

    for path in run_export(local(run), out, format, licence):
        err.print(str(path), highlight=False)
