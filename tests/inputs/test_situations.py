"""Every situation that docs/trust.md lists has the right result."""

from __future__ import annotations

from pathlib import Path

import pytest

from .files import SITUATIONS as FILES
from .others import SITUATIONS as OTHERS
from .situation import Situation

pytest.importorskip("resvg_py", reason="resvg is not installed")
pytest.importorskip("lancedb", reason="lancedb is not installed")


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("situation", [*FILES, *OTHERS], ids=lambda s: f"{s.kind}: {s.name}")
def test_situation(situation: Situation, tmp_path: Path) -> None:
    assert situation.run(tmp_path)[1] == ""
