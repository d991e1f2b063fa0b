"""Image loading: decode any supported format into a PIL RGB image, or raise an ImageError."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, features

from csaligner.checks import CSAlignerError
from csaligner.extras import install_command
from csaligner.types import ImageSource

from .deep import eight_bits, in_strips, low_byte_tiles, restore_bits, strips
from .drawing import draw
from .metadata_parts import pixels_only
from .svg_check import harmless

HEIC = frozenset({".heic", ".heif"})  # read where pillow-heif is installed
JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
SUFFIXES = frozenset({".svg", ".svgz", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}) | JPEG
FORMATS: tuple[str, ...] = (
    "PNG",
    "JPEG",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
)  # some other formats of Pillow start external programs
if features.check("avif"):
    FORMATS = (*FORMATS, "AVIF")
if find_spec("pillow_heif"):
    SUFFIXES, FORMATS = SUFFIXES | HEIC, (*FORMATS, "HEIF")
MAX_ENCODED = 500_000_000  # bytes of an encoded image
MAX_PIXELS = 50_000_000  # checked before decoding; 200 MB of RGBA
LONGEST_SHOWN = 160
NEARLY_WHITE = 240  # of 255


def name_of(source: ImageSource) -> str:
    """Return the name of an image for messages: its path, with the last part cut to 160 characters."""
    text = str(source)
    folder, slash, last = text.rpartition("/")
    return text if len(last) <= LONGEST_SHOWN else f"{folder}{slash}{last[: LONGEST_SHOWN - 3]}..."


class ImageError(CSAlignerError, ValueError):
    """An unreadable image; the message names the file and the reason."""


def load_image(source: ImageSource, size: int = 224) -> Image.Image:
    """Load an image as RGB, rotated upright by its EXIF orientation (if readable), with its aspect ratio.

    Transparent images are composed on white, or on black if the result on white is nearly white everywhere. Grey
    values and colours of 9 to 16 bits are scaled by the smallest power of two above their maximum: 0 to 4095 fills the
    range.

    size: length in pixels of the longer side of a drawing (svg, svgz). Other images keep their size, but a JPEG much
    larger than `size` may be decoded at a half, a quarter or an eighth of its size, never below 2 * size.

    Damaged or oversized text, ICC and EXIF chunks are ignored.

    Raises ImageError for a missing, empty, truncated or unknown file and for more than MAX_PIXELS pixels.
    """
    if isinstance(source, Path) and not is_file(source):
        raise ImageError(f"{name_of(source)}: no such file")
    if Path(source.name).suffix.lower() in {".svg", ".svgz"}:
        return _opaque(_draw(source, size))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # Pillow warns about large images, which MAX_PIXELS limits, and odd metadata
            return _decode_or_repair(source, size)
    except ImageError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit is checked first
        raise ImageError(f"{name_of(source)}: has more pixels than the limit of {MAX_PIXELS:,}") from None
    except Exception as error:  # Pillow's plugins raise many classes for damaged files
        raise ImageError(f"{name_of(source)}: cannot be read as an image ({_one_line(error)})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in memory as load_image gives it: RGB, upright, opaque."""
    return _opaque(ImageOps.exif_transpose(image))


def read_bytes(source: ImageSource) -> bytes:
    """Return the encoded image. Raises ImageError if it cannot be read."""
    try:
        return read_file(source) if isinstance(source, Path) else source.read()
    except OSError as error:
        raise ImageError(f"{name_of(source)}: {error.strerror or _one_line(error)}") from None


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError if it is missing, not a regular file, or larger than MAX_ENCODED."""
    if path.exists() and not path.is_file():  # reading a device or a pipe could block
        raise OSError("is not a file")
    if path.stat().st_size > MAX_ENCODED:
        raise OSError(f"has more bytes than the limit of {MAX_ENCODED:,}")
    return path.read_bytes()


def is_file(path: Path) -> bool:
    """Return whether `path` is a file; False for an invalid name (too long, with a zero byte, or not encodable)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _decode_or_repair(source: ImageSource, size: int) -> Image.Image:
    """Decode an image; if that fails, try again without its metadata."""
    file = source if isinstance(source, Path) else io.BytesIO(read_bytes(source))
    try:
        return _decode(source, file, size)
    except (ImageError, Image.DecompressionBombError):
        raise
    except Exception:  # Pillow's plugins raise many classes for damaged files
        pixels = pixels_only(read_bytes(source))
        if pixels is None:
            raise
    return _decode(source, io.BytesIO(pixels), size)


@cache
def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def _decode(source: ImageSource, file: Path | io.BytesIO, size: int) -> Image.Image:
    if "HEIF" in FORMATS:
        _register_heif()
    with Image.open(file, formats=FORMATS) as image:
        image.draft("RGB", (2 * size, 2 * size))  # JPEG only: decode at a reduced size
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"{name_of(source)}: {width} x {height} pixels are more than the limit of {MAX_PIXELS:,}")
        low = low_byte_tiles(image)
        image.load()
        if low is not None:
            restore_bits(image, low, file)
        with suppress(Exception):  # an unreadable orientation; plugins raise many classes
            ImageOps.exif_transpose(image, in_place=True)
        return _opaque(image)


def _draw(source: ImageSource, size: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(draw(harmless(read_bytes(source)), size)), formats=["PNG"])
    except CSAlignerError:
        raise
    except ImportError:
        raise ImageError(f"{name_of(source)}: drawing SVG needs resvg; {install_command('bundled')}") from None
    except Exception as error:  # of gzip, the parser or the renderer
        raise ImageError(f"{name_of(source)}: cannot be drawn ({_one_line(error)})") from None


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        most = max((int(values.max(initial=0)) for values, _ in strips(image)), default=0)
        return in_strips(image, lambda values: eight_bits(values, most)).convert("RGB")
    if image.mode in {"I", "F"}:
        return _stretched(image)
    if image.mode not in {"RGBA", "LA", "PA", "RGBa", "La"} and "transparency" not in image.info:
        return image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba)
    darkest = min(low for low, _ in white.getextrema())  # type: ignore[misc]  # a pair for each colour
    if darkest < NEARLY_WHITE or rgba.getchannel("A").getextrema()[1] == 0:
        return white
    black = Image.new("RGB", rgba.size, "black")
    black.paste(rgba, mask=rgba)
    brightest = max(high for _, high in black.getextrema())  # type: ignore[misc]
    return black if brightest > 255 - darkest else white


def _stretched(image: Image.Image) -> Image.Image:
    """Scale 32-bit integer or floating grey values, which have no fixed range, from their minimum to their maximum."""
    ends = [(values.min(), values.max()) for values in (_finite(strip) for strip, _ in strips(image))]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    scale = 255 / (high - low) if high > low else 0.0
    return in_strips(image, lambda strip: ((_finite(strip) - low) * scale).round().astype(np.uint8)).convert("RGB")


def _finite(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
