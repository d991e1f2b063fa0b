"""The commands quickstart, index, search, serve and index-export."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from csaligner.checks import InputError

from .common import SEARCH, Json, Quiet, app, as_text, err, print_json
from .reader_options import CaptionKey, Encoding, FollowLinks, Format, IdKey, ImgKey, Root, Separator

if TYPE_CHECKING:
    from csaligner.app.server import Generator, ServeSettings
    from csaligner.search.build import BuildReport
    from csaligner.search.index import Hit, Index

SHOWN_REASONS, SHOWN_CHARACTERS = 5, 160
DRAWN_PIXELS = 256
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free port.")]
Host = Annotated[str, typer.Option(help="Address to listen on; the default is this machine only.")]
Password = Annotated[
    str | None, typer.Option(envvar="CSALIGNER_PASSWORD", help="Require this password (any user name).")
]


@app.command(rich_help_panel=SEARCH)
def index(  # noqa: PLR0913, PLR0917  (options of a command)
    data: Annotated[str, typer.Option(help="A dataset, as embed takes it: a folder, a table, a name.")],
    out: Annotated[Path, typer.Option(help="Folder of the index; an existing index is updated.")],
    run: Annotated[str | None, typer.Option(help="A run folder, a saved aligner, or bundled.")] = None,
    approximate: Annotated[str, typer.Option(help="Search method: auto, exact, ivf_sq, ivf_pq or hnsw.")] = "auto",
    captions: Annotated[bool, typer.Option(help="Index the captions of images as texts.")] = True,
    data_format: Format = None,
    csv_separator: Separator = None,
    csv_encoding: Encoding = None,
    csv_img_key: ImgKey = None,
    csv_caption_key: CaptionKey = None,
    csv_id_key: IdKey = None,
    image_root: Root = None,
    follow_links: FollowLinks = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads that decode images.")] = 2,
    quiet: Quiet = False,
) -> None:
    """Index images and texts for mixed search; unchanged items are not embedded again."""
    from csaligner.datasets.documents import EntrySettings
    from csaligner.progress import progress
    from csaligner.search.build import BuildSettings, build_index

    entries = EntrySettings(
        captions,
        csv_img_key,
        csv_caption_key,
        csv_id_key,
        image_root,
        csv_separator,
        csv_encoding,
        data_format,
        follow_links,
    )
    settings = BuildSettings(entries, approximate, workers)
    with progress(err, "index", quiet) as update:
        made, report = build_index(data, out, run, settings=settings, progress=update)
    _print_report(made, report)


@app.command(rich_help_panel=SEARCH)
def search(
    index: Annotated[Path, typer.Argument(help="An index folder.")],
    words: Annotated[str | None, typer.Argument(help="Text to search for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image to search for, instead of a text.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results.")] = 10,
    only: Annotated[str | None, typer.Option(help="Restrict the results to images or texts.")] = None,
    space: Annotated[str, typer.Option(help="Vectors to compare: aligned, raw or centred.")] = "aligned",
    as_json: Json = False,
) -> None:
    """Search an index by text or by image."""
    from csaligner.search.index import Index, SearchOptions

    if (words is None) == (image is None):
        raise InputError("search: give either a text or --image FILE")
    options = SearchOptions(only=only, space=space)  # type: ignore[arg-type]  # checked by search
    opened = Index.open(index)
    hits = opened.search(as_text(words) if words is not None else image, k, options)  # type: ignore[arg-type]  # one of them is given
    if as_json:
        print_json([asdict(hit) for hit in hits])
    else:
        Console().print(_table(hits))


@app.command("index-export", rich_help_panel=SEARCH)
def index_export(
    index: Annotated[Path, typer.Argument(help="An index folder.")],
    out: Annotated[Path, typer.Option(help="New folder for the export.")],
    kind: Annotated[str, typer.Option("--format", help="Output format: parquet, npy, qdrant or pgvector.")] = "parquet",
) -> None:
    """Export the aligned vectors of an index for another vector database."""
    from csaligner.search.export import export_index
    from csaligner.search.index import Index

    for line in export_index(Index.open(index), out, kind):
        err.print(line, highlight=False, soft_wrap=True, markup=False)


def _print_report(made: Index, report: BuildReport) -> None:
    for note in report.notes:
        err.print(_plain(note), style="yellow", highlight=False, markup=False)
    for reason in report.skipped[:SHOWN_REASONS]:
        err.print(f"skipped: {_plain(reason)}", style="yellow", highlight=False, markup=False)
    if len(report.skipped) > SHOWN_REASONS:
        err.print(f"skipped: {len(report.skipped) - SHOWN_REASONS} more", style="yellow", highlight=False)
    counts = made.counts
    err.print(
        f"{report.added} added, {report.updated} updated, {report.deleted} deleted, {report.unchanged} unchanged; "
        f"{counts['image']} images and {counts['text']} texts: {made.path}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    how = made.manifest.approximate
    if how is not None:
        err.print(f"approximate ({how.kind}): recall@10 {how.recall:.3f} against exact search", highlight=False)


def _table(hits: list[Hit]) -> Any:
    table = Table(box=None, header_style="bold")
    for name, right in (("", True), ("score", True), ("kind", False), ("what", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold" if name == "what" else "ellipsis")
    for number, hit in enumerate(hits, start=1):
        what = f"{hit.path}  {hit.caption}" if hit.modality == "image" else hit.text
        note = " (file is missing)" if hit.missing else ""
        what = _plain(what.strip())
        what = what if len(what) <= SHOWN_CHARACTERS else what[: SHOWN_CHARACTERS - 1] + "…"
        table.add_row(str(number), f"{hit.score:.3f}", hit.modality, escape(what + note))
    return table


def _plain(text: str) -> str:
    """Return text on one line without control characters, which a terminal would execute."""
    return "".join(c if c.isprintable() else " " for c in text)


@app.command(rich_help_panel=SEARCH)
def serve(
    index: Annotated[Path, typer.Argument(help="An index folder.")],
    host: Host = "127.0.0.1",
    port: Port = 7860,
    password: Password = None,
    name: Annotated[str, typer.Option(help="Title of the page; default: the folder's name.")] = "",
    decoder: Annotated[
        str | None, typer.Option(help="Also generate images with this decoder, as in `generate`.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name under which a proxy serves the page; repeatable.")
    ] = None,
    root_path: Annotated[str, typer.Option(help="Path below which a proxy serves the page, such as /search.")] = "",
) -> None:
    """Search an index in the browser."""
    from csaligner.app.server import ServeSettings
    from csaligner.search.index import Index

    draw = _drawer(decoder) if decoder else None
    settings = ServeSettings(host, port, password, draw, name, tuple(allow_host or ()), root_path)
    _serve(Index.open(index), settings)


def _drawer(decoder: str) -> Generator:
    """Return a function that generates one image at a time: a decoder uses the whole machine."""
    from csaligner.decoders.decoder import default_sampling
    from csaligner.generation.generate import GenerationRequest, enlarge, generate

    lock = threading.Lock()

    def draw(words: str, seed: int) -> Any:
        with lock:
            sampling = default_sampling(decoder, seed=seed)
            return enlarge(
                generate(GenerationRequest((words,)), decoder=decoder, sampling=sampling)[0][0], DRAWN_PIXELS
            )

    return draw


@app.command(rich_help_panel=SEARCH)
def quickstart(
    folder: Annotated[
        Path, typer.Argument(help="Folder of images and texts; captions in a .txt file of the same name.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the index; default: csaligner-NAME in the current folder.")
    ] = None,
    serve: Annotated[bool, typer.Option(help="Open the search page at the end.")] = True,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    password: Password = None,
    quiet: Quiet = False,
) -> None:
    """From a folder to a search page: train if there are enough captions, index, serve."""
    from csaligner.app.server import ServeSettings
    from csaligner.progress import progress
    from csaligner.quickstart import quickstart as start

    out = out or Path(f"csaligner-{folder.resolve().name}")
    with progress(err, "quickstart", quiet) as update:
        result = start(folder, out, _print, update)
    _print_report(result.index, result.report)
    _print(f'Next time: csaligner search {out / "index"} "words", or csaligner serve {out / "index"}')
    if serve:
        _serve(result.index, ServeSettings(host=host, port=port, password=password, name=folder.resolve().name))


def _print(line: str) -> None:
    err.print(line, highlight=False, markup=False, soft_wrap=True)


def _serve(index: Index, settings: ServeSettings) -> None:
    from csaligner.app.server import serve as serve_index

    if settings.is_open:
        where = next(iter(settings.allow_hosts), settings.host)
        err.print(
            f"warning: {where} can be reached from other machines and no --password is set: "
            "anyone on the network can search this index and see its images",
            style="yellow",
            highlight=False,
        )
    serve_index(index, settings, lambda url: err.print(f"Open {url} (press Ctrl-C to stop)", highlight=False))
