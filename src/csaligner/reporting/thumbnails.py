"""Thumbnails as data URIs."""

from __future__ import annotations

import base64
import io
from functools import lru_cache

from csaligner.checks import CSAlignerError
from csaligner.types import ImageSource

THUMBNAIL = 96


@lru_cache(maxsize=1024)
def data_uri(source: bytes | ImageSource | None) -> str:
    """Return a 96 px thumbnail as a data URI; empty for no image or an unreadable one."""
    from PIL import Image

    if source is None:
        return ""
    try:
        if isinstance(source, bytes):
            image: Image.Image = Image.open(io.BytesIO(source))
        else:
            from csaligner.datasets.images.load import load_image

            image = load_image(source, size=2 * THUMBNAIL)
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        flat = Image.alpha_composite(background, image).convert("RGB")
        flat.thumbnail((THUMBNAIL, THUMBNAIL))
    except (OSError, ValueError, SyntaxError, CSAlignerError, Image.DecompressionBombError):
        return ""
    choices = []
    for form in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        small = flat.quantize(64) if form == "PNG" else flat
        small.save(buffer, format=form, quality=85, optimize=True)
        choices.append((len(buffer.getvalue()), form.lower(), buffer.getvalue()))
    _, form, encoded = min(choices)
    return f"data:image/{form};base64,{base64.b64encode(encoded).decode()}"
