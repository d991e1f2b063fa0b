"""export: a run's adapters for programs without csaligner."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import app, err


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    format: Annotated[str, typer.Option(help="safetensors, onnx, npz, sentence-transformers or hub.")] = "safetensors",
    licence: Annotated[str, typer.Option(help="For the model card of hub; SPDX.")] = "unknown",
) -> None:
    """Write the adapters of a run as safetensors, ONNX, NumPy arrays, a SentenceTransformer or a hub folder."""
    from csaligner.export.export import export as run_export

    for path in run_export(run, out, format, licence):
        err.print(str(path), highlight=False)
