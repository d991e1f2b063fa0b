"""Missing file permissions: one-line errors, no partial files, nothing skipped silently."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import Data, Starter, Undisturbed
from tests.faults.state import NEEDS, STATE, files

COMMANDS = list(STATE) if "CSALIGNER_FAULT_KILLS" in os.environ else ["train", "index"]  # all in `make faults`
pytestmark = pytest.mark.skipif(
    os.name != "posix" or (os.geteuid() == 0 and sys.platform != "linux"), reason="permissions do not hold here"
)


@pytest.mark.parametrize("what", ["a new folder in it", "an empty one", "a finished one"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_may_not_be_written_to(
    command: str, what: str, start: Starter, data: Data, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    pytest.importorskip(NEEDS.get(command, "torch"), reason="an extra is not installed")
    closed = tmp_path / "closed"
    closed.mkdir()
    if what == "a finished one":
        shutil.copytree(undisturbed(command)[0], closed, symlinks=True, dirs_exist_ok=True)
    folders = [closed, *(path for path in closed.rglob("*") if path.is_dir() and not path.is_symlink())]
    before = files(closed)
    for folder in folders:
        folder.chmod(0o555)
    out = closed / "out" if what == "a new folder in it" else closed
    done = start(data.words(command, out), closed, powers=False)
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o555
        folder.chmod(0o755)
    assert done.code == 1, done.said
    lines = [line for line in done.said.splitlines() if line.startswith("csaligner: ")]
    assert len(lines) == 1, done.said
    assert str(out) in lines[0]
    assert "(Permission denied)" in lines[0]
    assert "Traceback" not in done.said
    assert files(closed) == before
    assert [path.name for path in tmp_path.iterdir()] == ["closed"]


def copied(data: Data, name: str, folder: Path) -> Path:
    """Copy one part of `data` to `folder`."""
    return Path(shutil.copytree(getattr(data, name), folder / name, symlinks=True))


@pytest.mark.parametrize(
    ("command", "input_", "closed"),
    [
        ("train", "features", "img_emb"),
        ("train", "features", "csaligner.json"),
        ("embed", "pictures", "."),
        ("embed", "pictures", "more"),
        ("embed", "pictures", "03.txt"),
        ("index", "run", "run.json"),
    ],
)
def test_what_may_not_be_read_is_named(
    command: str, input_: str, closed: str, start: Starter, data: Data, tmp_path: Path
) -> None:
    whole = copied(data, input_, tmp_path)
    if closed == "more":
        (whole / closed).mkdir()
    path = whole / closed
    path.chmod(0)
    out = tmp_path / "out"
    words = [str(whole) if word == str(getattr(data, input_)) else word for word in data.words(command, out)]
    done = start(words, out, powers=False)
    path.chmod(0o755)
    assert done.code == 1, done.said
    assert len(done.said.splitlines()) == 1, done.said
    assert str(path if closed != "." else whole) in done.said
    assert "Permission denied" in done.said
    assert "cannot be written" not in done.said
    assert not out.exists()


def test_a_folder_that_may_not_be_read_is_left_out_of_an_index_aloud(
    start: Starter, data: Data, tmp_path: Path
) -> None:
    pytest.importorskip("lancedb", reason="an extra is not installed")
    whole = copied(data, "pictures", tmp_path)
    (whole / "more").mkdir(mode=0)
    words = [str(whole) if word == str(data.pictures) else word for word in data.words("index", tmp_path / "out")]
    done = start(words, tmp_path / "out", powers=False)
    (whole / "more").chmod(0o755)
    assert done.code == 0, done.said
    assert f"{whole / 'more'}: Permission denied" in done.said
