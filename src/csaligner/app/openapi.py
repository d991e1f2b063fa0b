"""OpenAPI description of the API, and a page that shows it without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import Any

from csaligner.adapters.fusion import WEIGHT
from csaligner.search.index import ONLY
from csaligner.search.vector_spaces import SPACES

from .handlers import DEFAULT_HITS, MOST_HITS, MOST_RESULTS, MOST_WORDS
from .pictures import MAX_UPLOAD, SIZES

Schema = Mapping[str, Any]
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FILE_OF = "File of the result, relative to the indexed folder; empty for a text that is a row of a table"
MODALITY: Schema = {"type": "string", "enum": ["image", "text"]}

RESULT: Mapping[str, tuple[Schema, str]] = {
    "id": (TEXT, "Id of the item in the index."),
    "modality": (MODALITY, "Whether the result is an image or a text."),
    "score": (NUMBER, "Score, comparable across modalities in the aligned space; results are sorted by it."),
    "cosine": (NUMBER, "Cosine similarity of the vectors, before calibration."),
    "weak": (FLAG, "Whether most queries without an answer reach this score as well."),
    "matched": (
        {"type": "string", "enum": ["image", "text", "both"]},
        "What matched the query: the image itself, a text (of an image: its caption), or both as one vector.",
    ),
    "hit": (TEXT, "Id of the item that matched: the result itself, or a caption of the image."),
    "text": (TEXT, "The text; of an image, the caption that matched, else its first caption."),
    "image": (TEXT, "Id for /api/thumb and /api/original, empty for a text without an image."),
    "images": (COUNT, "Number of images that a text describes."),
    "file": (TEXT, FILE_OF + "; of a caption, that of its image."),
    "missing": (FLAG, "Whether the file no longer exists."),
}
ANSWER: Mapping[str, tuple[Schema, str]] = {
    "results": ({"type": "array", "items": {"$ref": "#/components/schemas/Result"}}, "One result per image or text."),
    "offset": (COUNT, "Number of results before these."),
    "more": (FLAG, "Whether there are results after these."),
    "weak_limit": ({"type": ["number", "null"]}, "Scores up to this one are weak; null for an empty index."),
    "chance": (
        {"type": ["number", "null"]},
        "How often a query without an answer has a first result as close; above 0.05: possibly no good match. Null "
        "with too few captions, and after the first results.",
    ),
    "seconds": (NUMBER, "Time of the search."),
}
ITEM: Mapping[str, tuple[Schema, str]] = {
    "id": (TEXT, "Id of the item."),
    "modality": (MODALITY, "Whether it is an image or a text."),
    "text": (TEXT, "The text; of an image that is one item with its captions, these, one per line."),
    "caption": (TEXT, "First caption of an image."),
    "owner": (TEXT, "Id of the image that a caption describes."),
    "image": (TEXT, "Id for /api/thumb and /api/original."),
    "file": (TEXT, FILE_OF + "."),
    "path": (TEXT, "Full path of the file; only in answers to the machine that serves the page."),
}
ABOUT: Mapping[str, tuple[Schema, str]] = {
    "name": (TEXT, "Name of the collection."),
    "counts": ({"type": "object", "additionalProperties": COUNT}, "Numbers of images and texts."),
    "fused": (COUNT, "Number of images that are one item with their captions."),
    "spaces": ({"type": "array", "items": TEXT}, "Spaces that can be searched."),
    "bias": ({"type": "object"}, "Modality bias at 10, by space and modality of the query; 0 = balanced."),
    "examples": ({"type": "array", "items": TEXT}, "Short texts of the collection, as example queries."),
    "note": (TEXT, "What to know about the results, in one line, else empty."),
    "generate": (FLAG, "Whether /api/generate is available."),
    "max_upload": (COUNT, "Largest upload in bytes."),
}
STATUS: Mapping[str, tuple[Schema, str]] = {
    "ready": (FLAG, "Whether the encoders are loaded; until then, a search waits for them."),
    "error": (TEXT, "Why the encoders could not be loaded, else empty."),
}
MAP: Mapping[str, tuple[Schema, str]] = {
    "points": ({"type": "array", "items": {"type": "array"}}, "Id, modality, label, x and y (0 to 1) of each item.")
}


def _parameter(name: str, about: str, schema: Schema, *, required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": about, "schema": dict(schema), "required": required}


ID = _parameter("id", "Id of an item.", TEXT, required=True)
SPACE = _parameter("space", "Space to search.", {"type": "string", "enum": list(SPACES), "default": "aligned"})
HOW = (
    _parameter(
        "k", "Number of results.", {"type": "integer", "minimum": 1, "maximum": MOST_HITS, "default": DEFAULT_HITS}
    ),
    _parameter(
        "offset",
        f"Results to skip, for the next page; offset + k is at most {MOST_RESULTS}.",
        {"type": "integer", "minimum": 0, "default": 0},
    ),
    _parameter("only", "Restrict the results to one modality.", {"type": "string", "enum": list(ONLY)}),
    SPACE,
)
PICTURE = {"description": "The image.", "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}


def _json(name: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": name, "content": {"application/json": {"schema": schema}}}


def _operation(about: str, answer: Mapping[str, Any], parameters: Sequence[Any] = (), **more: Any) -> dict[str, Any]:
    failed = {status: _json("Error") for status in ("400", "404", "4XX")}  # 4XX: host, password, method
    return {"summary": about, "parameters": list(parameters), "responses": {"200": dict(answer), **failed}, **more}


@cache
def openapi() -> dict[str, Any]:
    """Return the description of the API in the format of OpenAPI 3.1."""
    body = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    words = _parameter("q", "Text to search for.", {"type": "string", "maxLength": MOST_WORDS}, required=True)
    also = _parameter("q", "Text to search for together with the image.", {"type": "string", "maxLength": MOST_WORDS})
    share = {"type": "number", "minimum": 0, "maximum": 1, "default": WEIGHT}
    weight = _parameter("image_weight", "Weight of the image in a query with words: 0 words only, 1 image only.", share)
    prompt = _parameter("q", "Text to generate an image from.", TEXT, required=True)
    seed = _parameter("seed", "Seed of the generator.", {"type": "integer", "minimum": 0, "default": 0})
    size = {"type": "integer", "minimum": 0, "maximum": SIZES[-1], "default": SIZES[0]}
    upload = (
        f"Search by an image: the bytes of a PNG, JPEG, WebP, GIF, BMP or TIFF of at most {MAX_UPLOAD:,} bytes; "
        "with q, by the image and the words as one query."
    )
    download = _parameter("download", "1: send as a file to save.", {"type": "integer", "default": 0})
    paths = {
        "/api/search": {"get": _operation("Search by a text.", _json("Answer"), [words, *HOW])},
        "/api/search/image": {
            "post": _operation(
                upload, _json("Answer"), [also, weight, *HOW], requestBody={"required": True, "content": body}
            )
        },
        "/api/similar": {"get": _operation("Search by an item of the index.", _json("Answer"), [ID, *HOW])},
        "/api/item": {"get": _operation("Return an item of the index.", _json("Item"), [ID])},
        "/api/thumb": {
            "get": _operation(
                "Return a thumbnail (JPEG) of an image, or of the image that a caption describes.",
                PICTURE,
                [ID, _parameter("size", "Largest side in pixels.", size)],
            )
        },
        "/api/original": {
            "get": _operation("Return the original file of an image; drawings (SVG) to save.", PICTURE, [ID, download])
        },
        "/api/map": {"get": _operation("Return two principal directions of the vectors.", _json("Map"), [SPACE])},
        "/api/about": {"get": _operation("Describe the collection.", _json("About"))},
        "/api/status": {"get": _operation("Report whether the encoders are loaded.", _json("Status"))},
        "/api/generate": {
            "post": _operation("Generate an image from a text (with --decoder).", PICTURE, [prompt, seed])
        },
    }
    schemas = {"Answer": ANSWER, "Result": RESULT, "Item": ITEM, "About": ABOUT, "Status": STATUS, "Map": MAP}
    schemas |= {"Error": {"error": (TEXT, "What was given, what was wanted, how to fix it.")}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "csaligner search", "version": version("csaligner")},
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {"schemas": {name: _object(fields) for name, fields in schemas.items()}},
    }


@cache
def api_page() -> str:
    """Return an HTML page of the description."""
    return str(_template("api.html").render(api=openapi(), kind=kind_of))


def search_page(name: str) -> str:
    """Return the HTML of the search page. name: of the collection."""
    return str(_template("index.html").render(name=name))


def kind_of(schema: Schema) -> str:
    """Describe a schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return " | ".join(schema["enum"])
    kind = schema["type"]
    words = " or ".join(kind) if isinstance(kind, list) else str(kind)
    return f"array of {kind_of(schema['items'])}" if words == "array" and "items" in schema else words


def _template(name: str) -> Any:
    from jinja2 import Environment, StrictUndefined

    text = resources.files("csaligner.app").joinpath("static", name).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)


def _object(fields: Mapping[str, tuple[Schema, str]]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {**schema, "description": about} for name, (schema, about) in fields.items()},
    }
