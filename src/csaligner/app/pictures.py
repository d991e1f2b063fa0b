"""Images of the app: uploads within limits, thumbnails of indexed images."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from csaligner.checks import InputError
from csaligner.datasets.images.hf_cell import SavedCell
from csaligner.datasets.images.load import FORMATS as READ
from csaligner.datasets.images.load import ImageError, load_image, read_bytes
from csaligner.datasets.images.parquet_cell import Cell
from csaligner.datasets.images.source import file_of, from_uri
from csaligner.search.lance_table import Row
from csaligner.types import ImageSource

MAX_UPLOAD = 10_000_000  # bytes
MAX_UPLOAD_PIXELS = 25_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # no SVG: it could reference local files
SIZES = (160, 320, 960)
DRAWINGS = frozenset({".svg", ".svgz"})
SHOWN = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "AVIF": "image/avif"}
REMEMBERED = 2000


@dataclass(frozen=True)
class Upload:
    """An uploaded image; see types.StoredImage."""

    data: bytes
    name: str = "upload"

    @property
    def stamp(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def __str__(self) -> str:
        return "uploaded image"

    def read(self) -> bytes:
        return self.data


def read_upload(data: bytes, size: int) -> Image.Image:
    """Decode an upload to RGB for an encoder that takes `size` pixels per side.

    Raises InputError for invalid and too large images; the size is checked before decoding.
    """
    if len(data) > MAX_UPLOAD:
        raise InputError(f"the image has {len(data) / 1e6:.0f} MB; the limit is {MAX_UPLOAD / 1e6:.0f} MB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as header:
                width, height = header.size
    except Image.DecompressionBombError:
        raise InputError(
            f"the image is larger than the limit of {MAX_UPLOAD_PIXELS / 1e6:.0f} million pixels"
        ) from None
    except Exception:  # Pillow raises many exception types for damaged files
        raise InputError("this file is not a readable image; use PNG, JPEG, WebP, GIF, BMP or TIFF") from None
    if width * height > MAX_UPLOAD_PIXELS:
        limit = MAX_UPLOAD_PIXELS / 1e6
        raise InputError(f"the image has {width} x {height} pixels; the limit is {limit:.0f} million")
    try:
        return load_image(Upload(data), size)
    except ImageError:
        raise InputError("the image is damaged") from None


@dataclass(frozen=True)
class Original:
    """The file of an indexed image. media: its type if browsers display it, else "" (to download only)."""

    name: str
    media: str
    file: BinaryIO
    size: int


def original(row: Row) -> Original:
    """Open the original of an indexed image.

    Only images that browsers display without running code have a media type; a drawing (SVG) does not.

    Raises ImageError if the file is missing, is not an image, or was replaced by a symbolic link.
    """
    source = source_of(row)
    try:
        file = _open(source)
    except (ImageError, OSError):  # its message contains the path, which is private
        raise ImageError(f"{row.id}: cannot be read") from None
    try:
        size = file.seek(0, io.SEEK_END)
        media = "" if Path(source.name).suffix.lower() in DRAWINGS else _media(file, row)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return Original(Path(source.name).name, media, file, size)


def source_of(row: Row) -> ImageSource:
    """Return the source of an indexed image. Raises ImageError if it is missing or was replaced by a link."""
    source = from_uri(row.path)
    path = file_of(source)
    if not row.path or path.resolve() != path or not path.exists():
        raise ImageError(f"{row.id}: the file no longer exists")
    # of a cell only the stored bytes, no referenced files
    return replace(source, files=False) if isinstance(source, (Cell, SavedCell)) else source


def _open(source: ImageSource) -> BinaryIO:
    if not isinstance(source, Path):
        return io.BytesIO(read_bytes(source))
    if not source.is_file():  # a device or a pipe could block
        raise ImageError("not a file")
    return source.open("rb")


def _media(file: BinaryIO, row: Row) -> str:
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind = Image.open(file, formats=READ).format or ""
    except Exception:  # Pillow raises many exception types for damaged files
        raise ImageError(f"{row.id}: cannot be read as an image") from None
    return SHOWN.get(kind, "")


def thumbnail(row: Row, size: int) -> bytes:
    """Return a JPEG of an indexed image, its longer side at most `size` pixels.

    Raises ImageError if the file is missing, is not an image, or was replaced by a symbolic link.
    """
    path = file_of(source_of(row))
    try:
        return _thumbnail(row.path, path.stat().st_mtime_ns, size)
    except (ImageError, OSError):  # its message contains the path, which is private
        raise ImageError(f"{row.id}: cannot be displayed as an image") from None


@lru_cache(REMEMBERED)
def _thumbnail(path: str, _mtime_ns: int, size: int) -> bytes:
    source = from_uri(path)
    # of a cell only the stored bytes, no referenced files
    picture = load_image(replace(source, files=False) if isinstance(source, (Cell, SavedCell)) else source, size)
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()
