"""check-data, embed, import: from other people's files to a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from csaligner.checks import InputError

from .common import Json, Quiet, app, err
from .reader_options import CaptionKey, Encoding, FollowLinks, Format, IdKey, ImgKey, Root, Separator, SplitKey

Workers = Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")]


@app.command()
def embed(  # noqa: PLR0913, PLR0917  (the names are open_clip's)
    out: Annotated[Path, typer.Option(help="Folder of the store.")],
    train_data: Annotated[str, typer.Option(help="openmoji, tuxpaint, openclipart, all, or a path.")],
    data_format: Format = None,
    csv_separator: Separator = None,
    csv_encoding: Encoding = None,
    csv_img_key: ImgKey = None,
    csv_caption_key: CaptionKey = None,
    csv_id_key: IdKey = None,
    csv_split_key: SplitKey = None,
    image_root: Root = None,
    follow_links: FollowLinks = False,
    image_encoder: Annotated[str, typer.Option(help="Any of docs/encoders.md.")] = "bundled:efficientnet-lite0",
    text_encoder: Annotated[str, typer.Option(help="Any of docs/encoders.md.")] = "bundled:all-MiniLM-L6-v2",
    image_only: Annotated[bool, typer.Option("--image-only", help="A store of pictures; captions not needed.")] = False,
    text_only: Annotated[bool, typer.Option("--text-only", help="A store of captions; no picture is read.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a forward pass.")] = 64,
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures a shard: what an interruption can lose.")] = 512,
    precision: Annotated[str, typer.Option(help="Of the files: fp32 or fp16.")] = "fp32",
    workers: Workers = 2,
    max_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unreadable pictures that is put up with.")
    ] = 0.05,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Write the tokens too, at most so many an item, for token_cauchy_schwarz.")
    ] = None,
    runner: Annotated[str, typer.Option(help="local (also under torchrun) or ray.")] = "local",
    ray_actors: Annotated[int | None, typer.Option(min=1, help="Ray workers; one a GPU or core if not given.")] = None,
    quiet: Quiet = False,
) -> None:
    """Turn images and captions into a store of features; goes on after an interruption."""
    from csaligner.distributed.processes import is_main, join_processes
    from csaligner.pipeline import embed_dataset, open_encoders
    from csaligner.progress import progress
    from csaligner.store.embed import ExtractSettings
    from csaligner.store.tokens import embed_tokens

    join_processes()
    if image_only and text_only:
        raise InputError("image_only: --image-only and --text-only leave nothing to do; give at most one")
    if tokens and (image_only or text_only):
        raise InputError("tokens: --tokens needs images and captions; leave --image-only and --text-only out")
    if precision not in ("fp32", "fp16"):
        raise InputError(f"precision: got {precision!r}, wanted fp32 or fp16")
    keys = _options(csv_img_key, csv_caption_key, csv_id_key, csv_split_key)
    keys |= {"separator": csv_separator, "encoding": csv_encoding, "image_root": image_root}
    keys |= {"follow_links": follow_links or None}
    settings = ExtractSettings(
        shard_size, batch_size, workers, max_bad, dtype="float16" if precision == "fp16" else "float32"
    )
    with progress(err, "embed", quiet or not is_main()) as update:
        store = embed_dataset(
            train_data,
            out,
            encoders=(None if text_only else image_encoder, None if image_only else text_encoder),
            options=keys | {"data_format": data_format},
            settings=settings,
            progress=update,
            runner=runner,  # type: ignore[arg-type]  # it is checked there
            ray_actors=ray_actors,
        )
    if tokens and is_main():
        with progress(err, "tokens", quiet) as update:
            embed_tokens(store, open_encoders((image_encoder, text_encoder)), tokens, update)
    for line in store.notes if is_main() else ():
        err.print(line, style="yellow", highlight=False, soft_wrap=True, markup=False)
    if is_main():
        err.print(f"{store.n_images} images, {store.n_captions} captions: {out}", highlight=False)


@app.command("check-data")
def check_data(  # noqa: PLR0913, PLR0917  (as embed's)
    data: Annotated[str, typer.Argument(help="openmoji, tuxpaint, openclipart, all, or a path.")],
    data_format: Format = None,
    csv_separator: Separator = None,
    csv_encoding: Encoding = None,
    csv_img_key: ImgKey = None,
    csv_caption_key: CaptionKey = None,
    csv_id_key: IdKey = None,
    csv_split_key: SplitKey = None,
    image_root: Root = None,
    follow_links: FollowLinks = False,
    text_encoder: Annotated[str | None, typer.Option(help="Count the captions that this one would cut off.")] = None,
    workers: Workers = 2,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Count, decode and compare everything in a dataset; of a store or an index, read every file and compare its
    SHA-256. Exit code 1 where something should be mended."""
    if _verified(Path(data)):
        if as_json:
            print(json.dumps({"dataset": data, "problems": []}, ensure_ascii=False))
        err.print(f"every file is as it was written: {data}", highlight=False, soft_wrap=True, markup=False)
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
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        for line in data_lines(report):
            Console().print(line, highlight=False, soft_wrap=True, markup=False)
    if report.problems:
        raise typer.Exit(1)


def _verified(path: Path) -> bool:
    """Is it a store or an index of csaligner, and whole? InputError where a file of one is damaged."""
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
    """For the reader: what is not given is left to it."""
    return {"image_key": image, "caption_key": caption, "id_key": image_id, "split_key": split}


@app.command("import")
def import_features(
    out: Annotated[Path, typer.Option(help="Folder of the store.")],
    image_features: Annotated[Path | None, typer.Option(help=".npy, .npz, .safetensors or .parquet, (N, d)")] = None,
    text_features: Annotated[Path | None, typer.Option(help="the same, (M, d)")] = None,
    image_name: Annotated[str, typer.Option(help="The model that made the image features, in your words.")] = "image",
    text_name: Annotated[str, typer.Option(help="The model that made the text features.")] = "text",
    image_ids: Annotated[Path | None, typer.Option(help="Text file: an id a line, for each image row.")] = None,
    text_image_ids: Annotated[Path | None, typer.Option(help="Text file: whose caption each text row is.")] = None,
    captions: Annotated[Path | None, typer.Option(help="Text file: the captions, one a line.")] = None,
) -> None:
    """Make a store from features that you have already; without ids row i pairs with row i."""
    from csaligner.store import import_features as feature_files

    files = feature_files.FeatureFiles(
        image_features, text_features, (image_name, text_name), image_ids, text_image_ids, captions
    )
    store = feature_files.import_features(files, out)
    err.print(f"{store.n_images} images, {store.n_captions} captions: {out}", highlight=False)
