"""Names of things that do not come with the package: registered by a script, or offered by an installed package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from csaligner.checks import InputError
from csaligner.registry import Registry, load

BUILT_IN = {"own": "csaligner.checks:nearest"}


def installed(folder: Path, lines: str) -> None:
    """What pip leaves of a package with entry points."""
    info = folder / "more-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[csaligner.tests]\n{lines}")
    (folder / "more_things.py").write_text("def thing() -> int:\n    return 7\n")


def test_a_registered_thing_is_found_by_its_name_and_takes_no_name_away() -> None:
    table = Registry("csaligner.tests", BUILT_IN)
    table.register("mine", len)
    assert load("thing", table, "mine") is len
    assert sorted(table) == ["mine", "own"]
    for name in ("own", "mine"):
        with pytest.raises(InputError, match=f"'{name}'"):
            table.register(name, max)
    with pytest.raises(InputError, match=r"^thing: 'mien'.*'mine'"):
        load("thing", table, "mien")


def test_an_installed_package_offers_things_and_cannot_replace_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "theirs = more_things:thing\nown = more_things:thing\nbroken = more_things:nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = Registry("csaligner.tests", BUILT_IN)
    assert "theirs" in table
    assert len(table) == len(list(table)) == 3
    assert "more_things" not in sys.modules
    assert load("thing", table, "theirs")() == 7
    assert load("thing", table, "own").__module__ == "csaligner.checks"
    with pytest.raises(InputError, match=r"'broken'.*more_things:nothing"):
        load("thing", table, "broken")
    with pytest.raises(InputError, match="'theirs'"):
        table.register("theirs", len)
