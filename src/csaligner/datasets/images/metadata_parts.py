"""Removal of metadata from PNG and JPEG files, for images that do not decode because of it."""

from __future__ import annotations

PNG = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # ancillary chunks that pixels depend on
JPEG = b"\xff\xd8"
START_OF_SCAN = 0xDA
JPEG_DROPPED = {0xFE, *range(0xE1, 0xF0)} - {0xEE}  # comments and APP1 to APP15 except Adobe's colour transform


def pixels_only(content: bytes) -> bytes | None:
    """Return the file without text, colour profiles, EXIF and other metadata; None without metadata, or for another
    format than PNG and JPEG."""
    if content.startswith(PNG):
        kept = _png(content)
    elif content.startswith(JPEG):
        kept = _jpeg(content)
    else:
        return None
    return kept if len(kept) < len(content) else None


def _png(content: bytes) -> bytes:
    parts, at = [PNG], len(PNG)
    while at + 8 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        name = content[at + 4 : at + 8]
        if name[:1].isupper() or name in PNG_KEPT:
            parts.append(content[at:end])
        at = end
    return b"".join(parts)


def _jpeg(content: bytes) -> bytes:
    parts, at = [JPEG], len(JPEG)
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != START_OF_SCAN:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if content[at + 1] not in JPEG_DROPPED:
            parts.append(content[at:end])
        at = end
    return b"".join([*parts, content[at:]])
