"""Documentation: links, and tables generated from JSON results."""

from __future__ import annotations

import multiprocessing
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fork: the modules of benchmarks have general names."""
    command = ROOT / "benchmarks" / "tables.py"
    monkeypatch.setattr(sys, "argv", [str(command), "--check"])
    monkeypatch.syspath_prepend(str(command.parent))
    monkeypatch.chdir(ROOT)
    options = {"run_name": "__main__"}
    process = multiprocessing.get_context("fork").Process(target=runpy.run_path, args=[str(command)], kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == 0


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
