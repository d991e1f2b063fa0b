"""Options of the readers, spelt alike in every command that reads data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Format = Annotated[
    str | None,
    typer.Option("--data-format", help="Name of the reader, where the path does not identify it (docs/data.md)."),
]
Separator = Annotated[
    str | None, typer.Option("--csv-separator", help="Separator of a csv file; default: found from its header.")
]
Encoding = Annotated[
    str | None,
    typer.Option("--csv-encoding", help="Encoding of a csv or jsonl file; default: UTF-8, UTF-16 or cp1252."),
]
ImgKey = Annotated[str | None, typer.Option("--csv-img-key", help="Column of the images; default: image.")]
CaptionKey = Annotated[str | None, typer.Option("--csv-caption-key", help="Column of the captions; default: caption.")]
IdKey = Annotated[str | None, typer.Option("--csv-id-key", help="Column of image ids; default: the image path.")]
SplitKey = Annotated[str | None, typer.Option("--csv-split-key", help="Column with train, val or test.")]
Root = Annotated[Path | None, typer.Option("--image-root", help="Folder that image paths are relative to.")]
FollowLinks = Annotated[bool, typer.Option("--follow-links", help="Also read the folders that links lead to.")]
ARRAY = "Array in a file of several: a name in .npz, .safetensors and .parquet, a number in an .npy (2, N, d)."
ImageArray = Annotated[str | None, typer.Option("--image-key", help=ARRAY)]
TextArray = Annotated[str | None, typer.Option("--text-key", help=ARRAY)]
FuseWeight = Annotated[
    str | None,
    typer.Option(
        help="Make one item of each image and its captions, with this weight of the image: 0 text only, 1 image only; "
        "auto: chosen on the data.",
        metavar="[WEIGHT|auto]",
    ),
]
