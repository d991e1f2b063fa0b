"""Nothing is left half written."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from csaligner.files import point, write_atomically, write_folder, write_text


class Interrupted(Exception):
    pass


def _write_one(text: str, folder: Path) -> None:
    (folder / "one").write_text(text)


def test_an_interrupted_write_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise Interrupted

    with pytest.raises(Interrupted):
        write_atomically(target, write)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken(temporary: Path) -> None:
        (temporary / "one").write_text("1")
        raise Interrupted

    with pytest.raises(Interrupted):
        write_folder(tmp_path / "out", broken)
    assert not list(tmp_path.iterdir())
    for text in ("1", "2"):
        write_folder(tmp_path / "out", partial(_write_one, text))
    assert (tmp_path / "out" / "one").read_text() == "2"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_moves_from_one_target_to_the_next(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        point(tmp_path / "latest", name)
    assert (tmp_path / "latest").resolve() == (tmp_path / "b").resolve()
