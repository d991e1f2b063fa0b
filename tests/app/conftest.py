"""The world of colours of tests/search, and an index of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from csaligner.search.build import build_index
from csaligner.search.index import Index

_spec = importlib.util.spec_from_file_location("colours", Path(__file__).parents[1] / "search" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_colours = importlib.util.module_from_spec(_spec)
sys.modules["colours"] = _colours  # dataclasses look their module up
_spec.loader.exec_module(_colours)
world, write = _colours.world, _colours.write

HOSTILE = (
    "<img src=x onerror=\"document.body.dataset.hacked='yes'\"><script>document.body.dataset.hacked='yes'</script>"
)


@pytest.fixture
def index(world: Any, write: Any, tmp_path: Path) -> Index:
    """40 pictures with captions, a document, and a picture whose name and caption are hostile."""
    world.many(40)
    world.picture("<b>bold & \x1b[31m.png", (250, 250, 5), HOSTILE)
    write("notes/read me.md", "A long story.\n\n" + "Words and words. " * 60)
    return build_index(str(world.folder), tmp_path / "ix", str(world.run), encoders=world.encoders)[0]
