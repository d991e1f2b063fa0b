"""Atomic writes."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path

import pytest

from csaligner.checks import CSAlignerError
from csaligner.files import point, recover, recover_folder, write_atomically, write_folder, write_text


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


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "a"
    write_folder(target, partial(_write_one, "old"))
    target.rename(tmp_path / ".a.replaced")  # state after a kill between two renames
    (tmp_path / ".a.0123abcd.tmp").mkdir()
    recover(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (target / "one").read_text() == "old"
    (tmp_path / ".a.replaced").mkdir()  # killed after the second
    recover(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (target / "one").read_text() == "old"


def test_what_a_killed_writer_of_a_folder_left_is_removed_beside_it(tmp_path: Path) -> None:
    """The parent may be anyone's: only temporary folders of that name are removed."""
    target = tmp_path / "a[1]"
    write_folder(target, partial(_write_one, "new"))
    others = [".a1.0123abcd.tmp", ".a[1].notes.tmp", ".b.0123abcd.tmp"]
    for name in (".a[1].0123abcd.tmp", *others):
        (tmp_path / name).mkdir()
    recover_folder(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "a[1]"])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk full"),
        (RuntimeError("lance: IO error: No space left on device (os error 28)"), "disk full"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (RuntimeError("I/O error: Permission denied (os error 13)"), "Permission denied"),
    ],
)
def test_a_disk_that_cannot_be_written_to_is_one_line(tmp_path: Path, error: Exception, words: str) -> None:
    def fail(temporary: Path) -> None:
        temporary.touch()
        raise error

    with pytest.raises(CSAlignerError, match=words):
        write_atomically(tmp_path / "a", fail)
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "gone")

    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "a", fail)
