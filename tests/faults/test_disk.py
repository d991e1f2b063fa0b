"""Full or failing disks: one-line errors, no partial files, and the command resumes once there is space."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.conftest import Data, Starter, Undisturbed
from tests.faults.state import NEEDS, STATE, files

PAGE = 4096
COMMANDS = list(STATE) if "CSALIGNER_FAULT_KILLS" in os.environ else ["embed"]  # all in `make faults`


@dataclass(frozen=True)
class Disk:
    """A small file system in memory."""

    folder: Path

    def set(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        words = ["mount", "-t", "tmpfs", "-o", "size=64m", "csaligner", str(folder)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(command: str, start: Starter, data: Data, undisturbed: Undisturbed, disk: Disk) -> None:
    whole, out = undisturbed(command)[0], disk.folder / "out"
    pages = sum(-(-len(content) // PAGE) + 1 for content in files(whole).values())
    share = random.Random(command).uniform(0.2, 0.6)
    disk.set(f"size={int(share * pages) * PAGE}")
    full = start(data.words(command, out), out)
    assert full.code == 1
    lines = [line for line in full.said.splitlines() if line.startswith("csaligner: ")]
    assert len(lines) == 1, full.said
    assert "disk full" in lines[0]
    assert "Traceback" not in full.said
    disk.set("size=64m")
    again = start(data.words(command, out), out)
    assert again.code == 0, again.said
    assert STATE[command](out) == STATE[command](whole)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_cannot_be_written_to(command: str, start: Starter, data: Data, disk: Disk) -> None:
    pytest.importorskip(NEEDS.get(command, "torch"), reason="an extra is not installed")
    disk.set("ro")
    closed = start(data.words(command, disk.folder / "out"), disk.folder)
    assert closed.code == 1
    assert closed.said.count("Read-only file system") == 1, closed.said
    assert "Traceback" not in closed.said
    assert not list(disk.folder.iterdir())
