"""Every long command, killed at random moments and given again, ends as if nothing had happened."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Data, Kill, Starter
from tests.faults.state import NEEDS, STATE

KILLS = int(os.environ.get("CSALIGNER_FAULT_KILLS", "2"))  # `make faults` asks for more


@pytest.mark.parametrize("command", list(STATE))
def test_killed_and_given_again(command: str, start: Starter, data: Data, tmp_path: Path) -> None:
    pytest.importorskip(NEEDS.get(command, "torch"), reason="an extra is not installed")
    whole = tmp_path / "whole"
    undisturbed = start(data.words(command, whole), whole)
    assert undisturbed.code == 0, undisturbed.said
    wanted = STATE[command](whole)
    for number in range(KILLS):
        draw = random.Random(f"{command} {number}")
        out = tmp_path / f"killed-{number}"
        killed = 0
        for _ in range(1 + number % 3):  # some are killed again while they recover
            kill = drawn(draw, number, undisturbed.operations, undisturbed.seconds)
            killed += start(data.words(command, out), out, kill).code == -9
        again = start(data.words(command, out), out)
        assert again.code == 0, (number, again.said)
        assert killed or number % 2, "it was not killed before an operation that it is known to do"
        assert_same(STATE[command](out), wanted, f"kill {number}")


def drawn(draw: random.Random, number: int, operations: int, seconds: float) -> Kill:
    """One half before an operation on a file, where most can go wrong, the other half at any moment."""
    if number % 2:
        return Kill(seconds=draw.uniform(0, seconds))
    return Kill(operation=draw.randint(2, operations))


def assert_same(found: dict[str, Any], wanted: dict[str, Any], when: str) -> None:
    assert sorted(found) == sorted(wanted), when
    for name, content in wanted.items():
        assert found[name] == content, f"{when}: {name} differs"
