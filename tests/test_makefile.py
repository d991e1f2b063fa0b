"""`make` finds any Python from 3.10 on that can make an environment, and says so where there is none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make")
GOOD, OLD = "#!/bin/sh\nexit 0\n", '#!/bin/sh\necho "Python 3.9.2"\n[ "$1" = --version ]\n'


def plan(folder: Path, pythons: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What `make demo` would run (or its error) where these are all the programs on the path."""
    if MAKE is None:
        pytest.skip("make is not installed")
    (folder / "bin").mkdir()
    for name in ("sh", "ls"):
        (folder / "bin" / name).symlink_to(str(shutil.which(name)))
    for name, script in pythons.items():
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
    command = [MAKE, *(["-n"] if GOOD in pythons.values() else []), f"{folder}/venv/.demo", f"VENV={folder}/venv"]
    environment = {"PATH": str(folder / "bin")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["python3", "python3.10", "python3.12", "python3.14", "python3.27"])
def test_any_python_that_is_new_enough_is_taken(name: str, tmp_path: Path) -> None:
    found = plan(tmp_path, {"python3.9": OLD, name: GOOD} | ({} if name == "python3" else {"python3": OLD}))
    assert f"{name} -m venv" in found.stdout, found.stderr


@pytest.mark.parametrize("pythons", [{}, {"python3": OLD}])
def test_without_one_it_says_what_to_install(pythons: dict[str, str], tmp_path: Path) -> None:
    found = plan(tmp_path, pythons)
    assert found.returncode != 0
    assert "no Python 3.10 or newer" in found.stderr
    assert ("3.9.2" if pythons else "none") in found.stderr
    assert not (tmp_path / "venv").exists()
