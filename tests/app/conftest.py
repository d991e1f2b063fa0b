"""Index of plain colours (tests/support/colours.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from csaligner.search.build import build_index
from csaligner.search.index import Index

HOSTILE = (
    "<img src=x onerror=\"document.body.dataset.hacked='yes'\"><script>document.body.dataset.hacked='yes'</script>"
)


@pytest.fixture
def index(world: Any, write: Any, tmp_path: Path) -> Index:
    """Index of 40 images with captions, a document, and an image with a malicious name and caption."""
    world.many(40)
    world.picture("<b>bold & \x1b[31m.png", (250, 250, 5), HOSTILE)
    write("notes/read me.md", "A long story.\n\n" + "Words and words. " * 60)
    return build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]
