"""Options of the commands that build, search and serve an index."""

from __future__ import annotations

from typing import Annotated

import typer

Encoder = Annotated[
    str | None,
    typer.Option(help="A model with two towers, instead of the bundled encoders: hf:..., open_clip:... or a folder."),
]
ImageEncoder = Annotated[
    str | None, typer.Option(help="An image encoder: bundled:..., hf:..., open_clip:... or a folder.")
]
TextEncoder = Annotated[
    str | None, typer.Option(help="A text encoder: bundled:..., hf:..., open_clip:... or a folder.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Trust an index from elsewhere: show the images and download the encoders it names."),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free port.")]
Host = Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")]
Password = Annotated[
    str | None, typer.Option(envvar="CSALIGNER_PASSWORD", help="Require this password (any user name).")
]
