"""Images of the app: uploads within limits, thumbnails of indexed images."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image

from csaligner.checks import InputError
from csaligner.datasets.images.hf_cell import SavedCell
from csaligner.datasets.images.load import ImageError, load_image
from csaligner.datasets.images.parquet_cell import Cell
from csaligner.datasets.images.source import file_of, from_uri
from csaligner.search.lance_table import Row

MAX_UPLOAD = 10_000_000  # bytes
MAX_UPLOAD_PIXELS = 25_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # no SVG: it could reference local files
SIZES = (160, 320, 960)
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


def thumbnail(row: Row, size: int) -> bytes:
    """Return a JPEG of an indexed image, its longer side at most `size` pixels.

    Raises ImageError if the file is missing, is not an image, or was replaced by a symbolic link.
    """
    path = file_of(from_uri(row.path))
    if not row.path or path.resolve() != path or not path.exists():
        raise ImageError(f"{row.id}: the file no longer exists")
    try:
        return _thumbnail(row.path, path.stat().st_mtime_ns, size)
    except ImageError:  # its message contains the path, which is private
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
