"""Documentation: links, and tables generated from JSON results."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.support.clean_process import in_clean_process

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process: the modules of benchmarks have general names."""
    command = ROOT / "benchmarks" / "tables.py"
    monkeypatch.setattr(sys, "argv", [str(command), "--check"])
    monkeypatch.syspath_prepend(str(command.parent))
    monkeypatch.chdir(ROOT)
    in_clean_process(runpy.run_path, str(command), None, "__main__")


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_install_lines_are_generated() -> None:
    """So that they are right before and after the first release (benchmarks/readme_tables.py)."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        written = re.sub(
            r"<!-- begin (\w+) -->.*?<!-- end \1 -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        assert not re.search(r"pip install '?csaligner", written), page.name
