"""The commands embed, check-data and import: datasets and feature files to stores."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console

from csaligner.checks import InputError
from csaligner.wording import images_and_captions

from .common import DATA, Json, Quiet, app, err, folder_to_write, print_json, renamed
from .reader_options import (
    CaptionKey,
    Encoding,
    FollowLinks,
    Format,
    IdKey,
    ImageArray,
    ImgKey,
    Root,
    Separator,
    SplitKey,
    TextArray,
)

Dtype = Annotated[
    str,
    typer.Option(
        help="Number format of integers and base64; auto: integers as they are, base64 of float32.",
        metavar="[auto|float32|float16|int8|uint8|binary|ubinary]",
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Number of processes that decode images.")]


@app.command(cls=renamed({"--train-data": "--data"}), rich_help_panel=DATA)
def embed(  # noqa: PLR0913, PLR0917  (the names are open_clip's)
    out: Annotated[str, typer.Option(help="Folder or s3:// URL of the store.")],
    data: Annotated[str, typer.Option(help="A dataset: openmoji, tuxpaint, openclipart, all, or a path.")],
    data_format: Format = None,
    csv_separator: Separator = None,
    csv_encoding: Encoding = None,
    csv_img_key: ImgKey = None,
    csv_caption_key: CaptionKey = None,
    csv_id_key: IdKey = None,
    csv_split_key: SplitKey = None,
    image_root: Root = None,
    follow_links: FollowLinks = False,
    image_encoder: Annotated[
        str, typer.Option(help="Name of an encoder: bundled:..., hf:..., open_clip:... or a folder.")
    ] = "bundled:efficientnet-lite0",
    text_encoder: Annotated[
        str, typer.Option(help="Name of an encoder: bundled:..., hf:..., open_clip:... or a folder.")
    ] = "bundled:all-MiniLM-L6-v2",
    image_only: Annotated[
        bool, typer.Option("--image-only", help="Embed the images alone; captions are not needed.")
    ] = False,
    text_only: Annotated[bool, typer.Option("--text-only", help="Embed the captions alone; no image is read.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Images per shard; an interruption loses at most one shard.")
    ] = 512,
    precision: Annotated[
        str, typer.Option(help="Number format of the stored features.", metavar="[fp32|fp16]")
    ] = "fp32",
    workers: Workers = 2,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Maximum fraction of unreadable images before the run fails.")
    ] = 0.05,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Also store the tokens of each item, at most this many (token_cauchy_schwarz, prior)."
        ),
    ] = None,
    runner: Annotated[str, typer.Option(help="local: also under torchrun.", metavar="[local|ray]")] = "local",
    ray_actors: Annotated[
        int | None, typer.Option(min=1, help="Number of Ray workers; default: one per GPU or core.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Change a finished store to the data; only what differs is embedded.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Embed a dataset of images and captions into a feature store; resumes after an interruption."""
    from csaligner.distributed.processes import is_main, join_processes, world_size
    from csaligner.pipeline import embed_dataset, open_encoders
    from csaligner.progress import progress
    from csaligner.store.embed import ExtractSettings
    from csaligner.store.manifest import MANIFEST
    from csaligner.store.read_tokens import add_tokens
    from csaligner.store.tokens import are_there

    join_processes()
    if image_only and text_only:
        raise InputError("image_only: --image-only and --text-only are mutually exclusive; give at most one")
    if precision not in ("fp32", "fp16"):
        raise InputError(f"precision: got {precision!r}, wanted fp32 or fp16")
    keys = _options(csv_img_key, csv_caption_key, csv_id_key, csv_split_key)
    keys |= {"separator": csv_separator, "encoding": csv_encoding, "image_root": image_root}
    keys |= {"follow_links": follow_links or None}
    settings = ExtractSettings(
        shard_size, batch_size, workers, max_bad, dtype="float16" if precision == "fp16" else "float32", update=update
    )
    settings = replace(settings, tokens=None if update or runner == "ray" else tokens)
    names = (None if text_only else image_encoder, None if image_only else text_encoder)
    several = runner == "ray" or world_size() > 1
    with folder_to_write(out, MANIFEST, shared=several) as folder:
        with progress(err, "embed", quiet or not is_main()) as show:
            store = embed_dataset(
                data,
                folder,
                encoders=names,
                options=keys | {"data_format": data_format},
                settings=settings,
                progress=show,
                runner=runner,  # type: ignore[arg-type]  # checked by embed_dataset
                ray_actors=ray_actors,
            )
        if tokens and is_main() and not are_there(store.path, store.manifest.plan, tokens):  # an older or updated store
            with progress(err, "tokens", quiet) as show:
                add_tokens(store, open_encoders(names), tokens, show)
    for line in store.notes if is_main() else ():
        err.print(line, style="yellow", highlight=False, soft_wrap=True, markup=False)
    if is_main():
        err.print(f"{images_and_captions(store.n_images, store.n_captions)}: {out}", highlight=False)


@app.command("check-data", rich_help_panel=DATA)
def check_data(  # noqa: PLR0913, PLR0917  (options of a command)
    data: Annotated[
        str,
        typer.Argument(
            help="A dataset (openmoji, tuxpaint, openclipart, all, or a path); a store, an index or its URL; or the "
            "folder of quickstart."
        ),
    ],
    data_format: Format = None,
    csv_separator: Separator = None,
    csv_encoding: Encoding = None,
    csv_img_key: ImgKey = None,
    csv_caption_key: CaptionKey = None,
    csv_id_key: IdKey = None,
    csv_split_key: SplitKey = None,
    image_root: Root = None,
    follow_links: FollowLinks = False,
    text_encoder: Annotated[
        str | None, typer.Option(help="Count the captions that this text encoder would truncate.")
    ] = None,
    workers: Workers = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check a dataset for unreadable images, duplicates and more, or the checksums of a store or an index.

    The exit code is 1 if problems were found.
    """
    if _verified(data):
        if as_json:
            print_json({"dataset": data, "problems": []}, indent=None)
        err.print(f"all files match their checksums: {data}", highlight=False, soft_wrap=True, markup=False)
        return
    from csaligner.datasets import open_dataset
    from csaligner.datasets.check import check_data as check
    from csaligner.encoders import open_encoder
    from csaligner.progress import progress
    from csaligner.reporting.data_check import data_lines

    keys = _options(csv_img_key, csv_caption_key, csv_id_key, csv_split_key)
    keys |= {"separator": csv_separator, "encoding": csv_encoding, "image_root": image_root}
    keys |= {"follow_links": follow_links or None}
    dataset = open_dataset(data, data_format, **keys)
    encoder = open_encoder(text_encoder, "text") if text_encoder else None
    with progress(err, "check", quiet) as update:
        report = check(dataset, encoder, workers, update)
    if as_json:
        print_json(report.as_json())
    else:
        for line in data_lines(report):
            Console().print(line, highlight=False, soft_wrap=True, markup=False)
    if report.problems:
        raise typer.Exit(1)


def _verified(data: str) -> bool:
    """Return whether this is a store or an index, the URL of one, or the folder of quickstart, whose index is checked.
    Raises InputError if a file is damaged, and for any other URL."""
    from csaligner.remote import local

    path = local(data, ("csaligner.json", "index.json"))
    if (path / "index" / "index.json").is_file():  # the folder of a quickstart
        path /= "index"
    if (path / "csaligner.json").is_file():
        from csaligner.store.store import Store

        Store.open(path).verify()
    elif (path / "index.json").is_file():
        from csaligner.search.index import Index

        Index.open(path).check()
    else:
        return False
    return True


def _options(image: str | None, caption: str | None, image_id: str | None, split: str | None) -> dict[str, Any]:
    """Return the column options of a reader; None means its default."""
    return {"image_key": image, "caption_key": caption, "id_key": image_id, "split_key": split}


@app.command("import", cls=renamed({"--captions": "--caption-file"}), rich_help_panel=DATA)
def import_features(  # noqa: PLR0913, PLR0917  (options of a command)
    out: Annotated[str, typer.Option(help="Folder or s3:// URL of the store.")],
    image_features: Annotated[
        str | None,
        typer.Option(help="Feature file or its URL, (N, d): .npy, .npz, .safetensors, .parquet, .json or .jsonl."),
    ] = None,
    text_features: Annotated[str | None, typer.Option(help="Feature file, (M, d).")] = None,
    image_name: Annotated[
        str | None, typer.Option(help="Name of the model that made the image features; default: image.")
    ] = None,
    text_name: Annotated[
        str | None, typer.Option(help="Name of the model that made the text features; default: text.")
    ] = None,
    image_ids: Annotated[str | None, typer.Option(help="Text file: the id of each image row, one per line.")] = None,
    text_image_ids: Annotated[str | None, typer.Option(help="Text file: the image id of each text row.")] = None,
    captions: Annotated[
        str | None, typer.Option("--caption-file", help="Text file: the captions, one per line.")
    ] = None,
    image_key: ImageArray = None,
    text_key: TextArray = None,
    image_cut: Annotated[int | None, typer.Option(help="Keep only the first dimensions (Matryoshka).")] = None,
    text_cut: Annotated[int | None, typer.Option(help="Keep only the first dimensions of the text features.")] = None,
    image_dtype: Dtype = "auto",
    text_dtype: Dtype = "auto",
) -> None:
    """Make a store from existing features; without ids row i pairs with row i."""
    from csaligner.store import import_features as feature_files
    from csaligner.store.manifest import MANIFEST

    files = feature_files.FeatureFiles(
        image_features,
        text_features,
        (image_name or "image", text_name or "text"),
        image_ids,
        text_image_ids,
        captions,
        (image_key, text_key),
        (image_cut, text_cut),
        (image_dtype, text_dtype),
    )
    with folder_to_write(out, MANIFEST, new=True) as folder:
        store = feature_files.import_features(files, folder)
    err.print(f"{images_and_captions(store.n_images, store.n_captions)}: {out}", highlight=False)
    given = {"--image-name": (image_features, image_name), "--text-name": (text_features, text_name)}
    missing = [option for option, (features, name) in given.items() if features is not None and not name]
    if missing:
        err.print(
            f"{' and '.join(missing)} not given: features of another model with as many dimensions cannot be told "
            f"apart from these; name the models with {' and '.join(f'{option} MODEL' for option in missing)}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
