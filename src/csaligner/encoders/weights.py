"""What a file of weights is known by."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_revision(path: Path) -> str:
    """`sha256:` and the first 16 hexadecimal digits of the file's SHA-256."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()[:16]
