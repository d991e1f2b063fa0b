"""Checks of the built site and of the archives."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import wheel
from tests.docs import links


def site(folder: Path, body: str) -> list[str]:
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "b.html").write_text('<h2 id="here">b</h2><a href="../index.html#top">up</a>')
    (folder / "index.html").write_text(f'<h1 id="top">a</h1>{body}')
    return links.problems(folder)


def name_all(found: list[str], wanted: list[tuple[str, ...]]) -> bool:
    """One line for each problem, which holds the words of it."""
    return [all(word in line for word in words) for line, words in zip(found, wanted, strict=True)] == [True] * len(
        wanted
    )


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('<a href="sub/b.html#here">b</a><a href="#top">t</a><a href="https://example.org/x">out</a>', []),
        ('<a href="sub/c.html">c</a>', [("index.html", "sub/c.html")]),
        ('<a href="sub/b.html#gone">b</a>', [("index.html", "anchor", "sub/b.html#gone")]),
        ('<img src="p.png">', [("index.html", "p.png")]),
        ("<p>text\n```python ranks\nimport torch</p>", [("index.html", "code fence")]),
        ('<script src="https://cdn.example/x.js"></script>', [("index.html", "loads", "https://cdn.example/x.js")]),
        ('<link rel="stylesheet" href="//fonts.example/f.css">', [("index.html", "loads", "//fonts.example/f.css")]),
    ],
)
def test_a_link_that_leads_nowhere_and_what_is_loaded_from_elsewhere(
    body: str, wanted: list[tuple[str, ...]], tmp_path: Path
) -> None:
    assert name_all(site(tmp_path / "site", body), wanted)


def test_a_wheel_holds_the_files_of_the_repository_and_no_others(tmp_path: Path) -> None:
    wanted = {"csaligner/__init__.py", "csaligner/assets/a/b.bin", "csaligner/assets/a/README.md"}
    whole, archive = tmp_path / "whole.whl", tmp_path / "csaligner-1.tar.gz"
    (tmp_path / "file").write_text("")
    with tarfile.open(archive, "w:gz") as tar:
        for name in (*wheel.IN_THE_ARCHIVE, *(f"src/{name}" for name in wanted)):
            tar.add(tmp_path / "file", f"csaligner-1/{name}")
    with zipfile.ZipFile(whole, "w") as file:
        for name in (*wanted, *(f"csaligner-1.dist-info/licenses/{name}" for name in wheel.LICENCES)):
            file.writestr(name, "")
    assert wheel.problems(whole, archive, wanted) == []
    broken = tmp_path / "broken.whl"
    with zipfile.ZipFile(broken, "w") as file:
        file.writestr("csaligner/__init__.py", "")
        file.writestr("tests/test_x.py", "")
    found = wheel.problems(broken, archive, {*wanted, "csaligner/new.py", "csaligner/assets/c/d.bin"})
    named = [
        ("broken.whl", "lacks", "csaligner/assets/a/README.md"),
        ("broken.whl", "lacks", "csaligner/assets/a/b.bin"),
        ("broken.whl", "lacks", "csaligner/assets/c/d.bin"),
        ("broken.whl", "lacks", "csaligner/new.py"),
        ("broken.whl", "holds", "tests/test_x.py"),
        ("broken.whl", "licence", "CC-BY-SA-4.0.txt"),
        ("broken.whl", "licence", "LICENSE"),
        ("csaligner/assets/c", "README"),
        ("csaligner-1.tar.gz", "lacks", "src/csaligner/assets/c/d.bin"),
        ("csaligner-1.tar.gz", "lacks", "src/csaligner/new.py"),
    ]
    assert name_all(found, named)
