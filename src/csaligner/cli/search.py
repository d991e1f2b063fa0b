"""The commands quickstart, index, search, serve and index-export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from csaligner.checks import InputError, check_choice
from csaligner.wording import count_of

from .common import EXPORT, SEARCH, Json, Quiet, WrongUsage, app, as_text, err, folder_to_write, print_json
from .reader_options import CaptionKey, Encoding, FollowLinks, Format, FuseWeight, IdKey, ImgKey, Root, Separator
from .search_options import Encoder, Host, ImageEncoder, Password, Port, TextEncoder, Trust
from .search_results import plain, table_of

if TYPE_CHECKING:
    from csaligner.app.server import ServeSettings
    from csaligner.model import AlignedModel
    from csaligner.search.build import BuildReport
    from csaligner.search.index import Index
    from csaligner.types import Encoder as OpenEncoder
    from csaligner.types import Modality


class Quoted(TyperCommand):
    """The command search, which says how to give several words."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except WrongUsage as error:
            if "extra argument" in error.message:
                error.message += '; put quotes around the text: csaligner search INDEX "several words"'
            raise


ONLY = {"image": "images", "text": "texts"}
BALANCED = 0.05  # modality bias up to which results count as balanced, as on the page


@app.command(rich_help_panel=SEARCH)
def index(  # noqa: PLR0913, PLR0917  (options of a command)
    data: Annotated[str, typer.Option(help="A dataset, as embed takes it: a folder, a table, a name.")],
    out: Annotated[str, typer.Option(help="Folder or s3:// URL of the index; an existing index is updated.")],
    run: Annotated[str | None, typer.Option(help="A run folder, a saved aligner, or bundled.")] = None,
    encoder: Encoder = None,
    image_encoder: ImageEncoder = None,
    text_encoder: TextEncoder = None,
    approximate: Annotated[
        str, typer.Option(help="Search method.", metavar="[auto|exact|faiss|ivf_sq|ivf_pq|ivf_rq|hnsw]")
    ] = "auto",
    captions: Annotated[bool, typer.Option(help="Index the captions of images as texts.")] = True,
    fuse: FuseWeight = None,
    data_format: Format = None,
    csv_separator: Separator = None,
    csv_encoding: Encoding = None,
    csv_img_key: ImgKey = None,
    csv_caption_key: CaptionKey = None,
    csv_id_key: IdKey = None,
    image_root: Root = None,
    follow_links: FollowLinks = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of threads that decode images.")] = 2,
    runner: Annotated[
        str, typer.Option(help="ray: encode on the workers of a Ray cluster.", metavar="[local|ray]")
    ] = "local",
    ray_actors: Annotated[
        int | None, typer.Option(min=1, help="Number of Ray workers; default: one per GPU or core.")
    ] = None,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Index images and texts for mixed search; unchanged items are not embedded again."""
    from csaligner.datasets.documents import INDEX_FILE, EntrySettings
    from csaligner.progress import progress
    from csaligner.search.build import BuildSettings, SkipLines, build_index
    from csaligner.search.fused import parse_fuse
    from csaligner.search.ray_runner import RayRunner

    check_choice("runner", runner, ("local", "ray"))
    names = _encoder_names(encoder, image_encoder, text_encoder)
    model, encoders = _model_of(run, names)
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
    skip = SkipLines(_warn)
    ray = RayRunner(partial(_opened, names), ray_actors) if runner == "ray" else None
    settings = BuildSettings(entries, approximate, workers, skip=skip, trust=trust, fuse=parse_fuse(fuse), ray=ray)
    with folder_to_write(out, INDEX_FILE) as folder, progress(err, "index", quiet) as update:
        made, report = build_index(data, folder, model, encoders=encoders, settings=settings, progress=update)
    skip.finish()
    for note in report.notes:
        _warn(note)
    _print_report(made, report, out)


@app.command(cls=Quoted, rich_help_panel=SEARCH)
def search(  # noqa: PLR0913, PLR0917  (options of a command)
    index: Annotated[str, typer.Argument(help="An index folder or its URL, or the folder of quickstart.")],
    words: Annotated[str | None, typer.Argument(help="Text to search for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image to search for, alone or with the text.")] = None,
    image_weight: Annotated[
        float | None, typer.Option(help="Weight of the image beside the text: 0 text only, 1 image only; default 0.5.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results.")] = 10,
    only: Annotated[
        str | None, typer.Option(help="Restrict the results to images or texts.", metavar="[images|texts]")
    ] = None,
    space: Annotated[str, typer.Option(help="Vectors to compare.", metavar="[aligned|raw|centred]")] = "aligned",
    encoder: Encoder = None,
    image_encoder: ImageEncoder = None,
    text_encoder: TextEncoder = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Search an index by text, by image or by both: one result per image, with the caption that matched and the score
    that the page shows; --json prints every image and caption."""
    if words is None and image is None:
        raise InputError("search: give a text, --image FILE or both")
    if image_weight is not None and (words is None or image is None):
        raise InputError("image_weight: is for a text with --image FILE; give both, or no --image-weight")
    with _working(f"Opening the index {index} ...") as update:
        from csaligner.adapters.fusion import WEIGHT
        from csaligner.search.cards import cards_of_encoded
        from csaligner.search.index import Index, SearchOptions
        from csaligner.search.query import FusedQuery
        from csaligner.search.unanswered import LEVEL, Unanswered
        from csaligner.search.weak import WEAK_CHANCE, WeakLimits

        options = SearchOptions(only=ONLY.get(only or "", only), space=space)  # type: ignore[arg-type]  # it checks it
        encoders = _model_of("", _encoder_names(encoder, image_encoder, text_encoder))[1]
        opened = Index.open(_index_of(index), encoders, trust=trust)
        if words is None or image is None:
            query: Any = image if words is None else as_text(words)
        else:
            query = FusedQuery(as_text(words), image, WEIGHT if image_weight is None else image_weight)
        given: dict[Modality, object] = {"image": image, "text": words}
        for modality in (m for m, value in given.items() if value is not None):
            update(f"Loading the {modality} encoder {opened.model.info(modality).id} ...")
            opened.model.encoder(modality)
        update("Searching ...")
        encoded = opened.encode(query)
        if as_json:
            hits = opened.search_encoded(encoded, k, options)
        else:
            cards = cards_of_encoded(opened, encoded, k, options)
            unanswered = Unanswered(opened)
            limit = WeakLimits(opened, unanswered).limit(encoded.kind, options)
            table = table_of(cards, limit)
            chance = unanswered.chance(cards[0].score, encoded.kind, options) if cards else None
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    Console().print(table)
    if chance is not None and chance > LEVEL:
        doubt = "No" if chance > WEAK_CHANCE else "Possibly no"
        Console().print(f"{doubt} good match: {chance:.0%} of queries without an answer find something as close.")
    if opened.note and space == "aligned" and not any(card.score > limit for card in cards):
        _print(opened.note)


@app.command("index-export", rich_help_panel=EXPORT)
def index_export(
    index: Annotated[str, typer.Argument(help="An index folder or its URL.")],
    out: Annotated[Path, typer.Option(help="New folder for the export.")],
    kind: Annotated[
        str, typer.Option("--format", help="Output format.", metavar="[parquet|npy|qdrant|pgvector]")
    ] = "parquet",
) -> None:
    """Export the aligned vectors of an index for another vector database."""
    from csaligner.search.export import export_index
    from csaligner.search.index import Index

    for line in export_index(Index.open(index), out, kind):
        err.print(line, highlight=False, soft_wrap=True, markup=False)


def _print_report(made: Index, report: BuildReport, out: Path | str) -> None:
    counts = made.counts
    held = f"{count_of(counts['image'], 'image')} and {count_of(counts['text'], 'text')}"
    if made.manifest.fused is not None:
        held += f" ({made.items.count('fused'):,} images with captions as one item, weight {made.manifest.fused:g})"
    changes = {"added": report.added, "embedded again": report.updated, "deleted": report.deleted}
    changed = ", ".join(f"{number:,} {what}" for what, number in changes.items() if number)
    first = report.added == sum(counts.values())
    _print(f"{out}: {held}" + ("" if first else f" ({changed or 'no change'})"))
    how = made.manifest.approximate
    if how is not None:
        err.print(f"approximate ({how.kind}): recall@10 {how.recall:.3f} against exact search", highlight=False)


def _balance(bias: Mapping[str, float]) -> str:
    """Return in words how far each modality of query favours its own modality among the first 10 results."""
    if all(abs(value) < BALANCED for value in bias.values()):
        return "images and texts are balanced among the first 10 results"
    parts = [
        f"{'an' if query == 'image' else 'a'} {query} query gets {abs(10 * value):.1f} {query}s too "
        f"{'many' if value > 0 else 'few'}"
        for query, value in bias.items()
        if abs(value) >= BALANCED
    ]
    return f"among the first 10 results, {' and '.join(parts)}, compared with their share of the index"


def _warn(line: str) -> None:
    err.print(plain(line), style="yellow", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _working(what: str) -> Iterator[Callable[[str], object]]:
    """Show what is being done, on a terminal only; yields a function that replaces the words."""
    if not err.is_terminal:
        yield lambda words: None
        return
    with err.status(escape(what)) as status:
        yield lambda words: status.update(escape(words))


@app.command(rich_help_panel=SEARCH)
def serve(  # noqa: PLR0913, PLR0917  (options of a command)
    index: Annotated[str, typer.Argument(help="An index folder or its URL, or the folder of quickstart.")],
    host: Host = "127.0.0.1",
    port: Port = 7860,
    password: Password = None,
    name: Annotated[str, typer.Option(help="Title of the page; default: the name of the indexed data.")] = "",
    decoder: Annotated[
        str | None, typer.Option(help="Also generate images with this decoder, as in `generate`.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Host name under which a proxy serves the page; repeatable.")
    ] = None,
    root_path: Annotated[str, typer.Option(help="Path below which a proxy serves the page, such as /search.")] = "",
    trust: Trust = False,
) -> None:
    """Search an index in the browser."""
    with _working(f"Opening the index {index} ..."):
        from csaligner.app.server import ServeSettings
        from csaligner.remote import local
        from csaligner.search.index import Index

        opened = Index.open(local(_index_of(index)), trust=trust)
    if opened.note:
        _print(opened.note)
    draw = None
    if decoder:
        from csaligner.app.draw import drawer

        draw = drawer(opened.model, decoder, _print)
    _serve(opened, ServeSettings(host, port, password, draw, name, tuple(allow_host or ()), root_path))


@app.command(rich_help_panel=SEARCH)
def quickstart(  # noqa: PLR0913, PLR0917  (options of a command)
    data: Annotated[
        str,
        typer.Argument(help="A folder of images and texts, with captions in a table or in .txt files; or a table."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the index; default: csaligner-NAME in the current folder.")
    ] = None,
    encoder: Encoder = None,
    image_encoder: ImageEncoder = None,
    text_encoder: TextEncoder = None,
    data_format: Format = None,
    csv_img_key: ImgKey = None,
    csv_caption_key: CaptionKey = None,
    image_root: Root = None,
    serve: Annotated[bool, typer.Option(help="Open the search page at the end.")] = True,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    password: Password = None,
    quiet: Quiet = False,
) -> None:
    """From a folder or a table to a search page: train if there are enough captions, index, serve."""
    from csaligner.app.server import ServeSettings
    from csaligner.datasets.documents import EntrySettings
    from csaligner.progress import steps
    from csaligner.quickstart import QuickstartSettings
    from csaligner.quickstart import quickstart as start

    name = Path(data).resolve().name if Path(data).is_dir() else Path(data).stem
    out = out or Path(f"csaligner-{name}")
    entries = EntrySettings(
        image_key=csv_img_key, text_key=csv_caption_key, image_root=image_root, data_format=data_format
    )
    settings = QuickstartSettings(_encoder_names(encoder, image_encoder, text_encoder), entries=entries)
    with steps(err, quiet) as step:
        result = start(data, out, _print, step, settings)
    _print_report(result.index, result.report, result.index.path)
    if bias := result.index.bias.get("aligned"):
        _print(_balance(bias))
    _print(f'Next time: csaligner search {out} "words", or csaligner serve {out}')
    if serve:
        _serve(result.index, ServeSettings(host=host, port=port, password=password, name=name))


def _encoder_names(encoder: str | None, image: str | None, text: str | None) -> tuple[str, str] | None:
    """Return the names of the encoders that the options give, None if they give none."""
    if encoder is None and image is None and text is None:
        return None
    from csaligner.encoders import encoder_pair

    return encoder_pair(encoder, image, text)


def _model_of(
    run: str | None, names: tuple[str, str] | None
) -> tuple[str | AlignedModel | None, tuple[OpenEncoder, ...]]:
    """Return the model to index with, and its encoders: those of the options, without an aligner if no run is given."""
    if names is None:
        return run, ()
    from csaligner.model import AlignedModel

    encoders = _opened(names)
    if run is not None:
        return run, encoders
    name = names[0] if names[0] == names[1] else " + ".join(names)
    return AlignedModel.of_encoders(*encoders, name=name), encoders


def _opened(names: tuple[str, str] | None) -> tuple[OpenEncoder, ...]:
    """Return the image and the text encoder of these names, none for None."""
    if names is None:
        return ()
    from csaligner.encoders import open_encoder

    return open_encoder(names[0], "image"), open_encoder(names[1], "text")


def _index_of(index: str) -> Path | str:
    """Return the folder of an index, or its URL; for the data of a quickstart in the current folder, its index."""
    from csaligner.urls import is_url

    if is_url(index):
        return index
    path = Path(index)
    made = Path(f"csaligner-{path.resolve().name if path.is_dir() else path.stem}")
    known = any((folder / "index.json").is_file() for folder in (path, path / "index"))
    return made if not known and (made / "index" / "index.json").is_file() else path


def _print(line: str) -> None:
    err.print(line, highlight=False, markup=False, soft_wrap=True)


def _serve(index: Index, settings: ServeSettings) -> None:
    from csaligner.app.server import serve as serve_index

    if not index.trusted:
        _warn(
            f"{index.path} was not made by this user on this machine, or before csaligner recorded who makes an index: "
            "images outside of it are not shown; index the data again, or give --trust if you trust who made it"
        )
    if settings.is_open:
        where = next(iter(settings.allow_hosts), settings.host)
        err.print(
            f"warning: {where} can be reached from other machines and no --password is set: "
            "anyone on the network can search this index and see its images",
            style="yellow",
            highlight=False,
        )
    with suppress(KeyboardInterrupt):  # how a server is stopped: nothing is to be resumed
        serve_index(index, settings, lambda url: err.print(f"Open {url} (press Ctrl-C to stop)", highlight=False))
