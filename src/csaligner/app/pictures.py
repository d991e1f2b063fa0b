"""Pictures in and out of the app: uploads within limits, thumbnails of indexed files and of nothing else."""

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
from csaligner.datasets.images.source import file_of, source_of
from csaligner.search.lance_table import Row

MAX_UPLOAD = 10_000_000  # bytes
MAX_UPLOAD_PIXELS = 25_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # not SVG: one could name other files of this machine
SIZES = (160, 320, 960)
REMEMBERED = 2000


@dataclass(frozen=True)
class Upload:
    """A picture that a visitor sent; see types.StoredImage."""

    data: bytes
    name: str = "upload"

    @property
    def stamp(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def __str__(self) -> str:
        return "the picture"

    def read(self) -> bytes:
        return self.data


def read_upload(data: bytes, size: int) -> Image.Image:
    """RGB, decoded for an encoder that wants `size` pixels of a side.

    Raises InputError, fit to be shown, for what is no image or too large; nothing is decoded before the size is known.
    """
    if len(data) > MAX_UPLOAD:
        raise InputError(f"the picture has {len(data) / 1e6:.0f} MB; the limit is {MAX_UPLOAD / 1e6:.0f} MB")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as header:
                width, height = header.size
    except Image.DecompressionBombError:
        raise InputError(f"the picture is larger than {MAX_UPLOAD_PIXELS / 1e6:.0f} million pixels") from None
    except Exception:  # Pillow's plugins raise many kinds for broken files
        raise InputError("this file is not a picture that can be read; use PNG, JPEG, WebP, GIF, BMP or TIFF") from None
    if width * height > MAX_UPLOAD_PIXELS:
        limit = MAX_UPLOAD_PIXELS / 1e6
        raise InputError(f"the picture has {width} x {height} pixels; the limit is {limit:.0f} million")
    try:
        return load_image(Upload(data), size)
    except ImageError:
        raise InputError("the picture is damaged and cannot be read to its end") from None


def thumbnail(row: Row, size: int) -> bytes:
    """JPEG of an indexed picture, its longer side at most `size` pixels.

    Raises ImageError where the file is gone, is no picture, or has become a link to somewhere else since it was
    indexed.
    """
    path = file_of(source_of(row.path))
    if not row.path or path.resolve() != path or not path.exists():
        raise ImageError(f"{row.id}: the file is not there any more")
    try:
        return _thumbnail(row.path, path.stat().st_mtime_ns, size)
    except ImageError:  # its text names the path, which is nobody's business
        raise ImageError(f"{row.id}: cannot be shown as a picture") from None


@lru_cache(REMEMBERED)
def _thumbnail(path: str, _mtime_ns: int, size: int) -> bytes:
    source = source_of(path)
    # of a cell its bytes alone, as they were indexed
    picture = load_image(replace(source, files=False) if isinstance(source, (Cell, SavedCell)) else source, size)
    picture.thumbnail((size, size))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()
