"""Commands killed at random moments: running them again gives the result of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from csaligner.files import write_json
from csaligner.run_folder import provenance
from tests.faults.conftest import Data, Kill, Starter, Undisturbed
from tests.faults.state import STATE

KILLS = int(os.environ.get("CSALIGNER_FAULT_KILLS", "2"))  # more in `make faults`
RECORD = os.environ.get("CSALIGNER_FAULT_RECORD")  # JSON file of results


@pytest.mark.parametrize("command", list(STATE))
def test_killed_and_given_again(
    command: str, start: Starter, data: Data, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole, usual = undisturbed(command)
    wanted, deaths = STATE[command](whole), 0
    for number in range(KILLS):
        draw = random.Random(f"{command} {number}")
        out = tmp_path / f"killed-{number}"
        killed = 0
        for _ in range(1 + number // 2 % 3):  # some are killed again while resuming
            kill = drawn(draw, number, usual.operations, usual.seconds)
            killed += start(data.words(command, out), out, kill).code == -9
        again = start(data.words(command, out), out)
        assert again.code == 0, (number, again.said)
        deaths += killed
        assert killed or number % 2, "it was not killed before an operation that it is known to do"
        assert_same(STATE[command](out), wanted, f"kill {number}")
        shutil.rmtree(out)
    if RECORD:
        record(Path(RECORD), command, {"trials": KILLS, "kills": deaths, "operations": usual.operations})


def record(path: Path, command: str, found: dict[str, int]) -> None:
    """Record the trials of a command in the JSON file, with earlier records of other commands, each with the versions
    that it was measured with."""
    before = json.loads(path.read_text(encoding="utf-8"))["commands"] if path.exists() else {}
    made = provenance(0)
    write_json(path, {"provenance": made, "commands": before | {command: found | {"provenance": made}}})


def drawn(draw: random.Random, number: int, operations: int, seconds: float) -> Kill:
    """Draw kill times: half of them before a file operation, half at any moment."""
    if number % 2:
        return Kill(seconds=draw.uniform(0, seconds))
    return Kill(operation=draw.randint(2, operations))


def assert_same(found: dict[str, Any], wanted: dict[str, Any], when: str) -> None:
    assert sorted(found) == sorted(wanted), when
    for name, content in wanted.items():
        assert found[name] == content, f"{when}: {name} differs"
