"""Commands with invalid arguments exit with a one-line error."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from hypothesis import given, settings
from hypothesis import strategies as st

from csaligner import cli
from tests.support.commands import csaligner

from .arrays import few

COMMANDS: Any = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
ALONE = {"demo": "--data", "generate": "--decoder", "generate-grid": ""}  # always invalid, else the commands run
# no valid inputs, and no paths outside the working folder; arguments of programs cannot contain null bytes
STRANGE = st.one_of(
    st.sampled_from(
        (
            *("", " ", "a\nb", "\x1b[31mred", "\udcff", "é\u202e☃", "x" * 300, "x" * 5000),
            *(".", "-", "--", "~", ",", "=", "=1"),
            *("-1", "0", "1", "2", "1e400", "nan", "-inf", str(2**70), "0x10", "1_000", "true", "null", "[]", "{}"),
            *("file.dat", "file.npy", "file.csv", "file.json", "folder", "folder/x", "file.dat/x", "/dev/null/x"),
            *("missing", "missing/x.npy", "bundled", "bundled:x", "table", "exact", "a,b", "a=b", "http://x"),
            *("epochs=", "epochs=x", "lr=nan", "seed=-1", "a.b.c=1", "objective={", 'out="\\0"', "lora.rank=0"),
        )
    ),
    st.text(st.characters(exclude_characters="/:\0"), max_size=12),
    st.integers(-3, 3).map(str),
)


@st.composite
def words(draw: Any, command: str) -> list[str]:
    """Draw arguments of a command: most required ones, other options, and unknown words."""
    options = [option for option in COMMANDS[command].params if option.opts[0].startswith("-")]
    needed = [option for option in options if option.required or option.opts[0] == ALONE.get(command)]
    groups = []
    for option in [*needed, *draw(st.lists(st.sampled_from(options), max_size=2))]:
        if draw(st.integers(0, 9)):
            flag = getattr(option, "is_flag", False)
            groups.append([draw(st.sampled_from(option.opts)), *([] if flag else [draw(STRANGE)])])
    free = sum(2 if option.nargs == -1 else 1 for option in COMMANDS[command].params if option not in options)
    groups += [[word] for word in draw(st.lists(STRANGE, max_size=free))]
    if not draw(st.integers(0, 9)) or (command in ALONE and ALONE[command] not in (group[0] for group in groups)):
        groups.append(["--no-such-option"])
    return [word for group in draw(st.permutations(groups)) for word in group]


def run(given_: list[str], folder: Path) -> tuple[int, str, str]:
    """Run `csaligner` in `folder`; returns exit code and output."""
    done = csaligner(*given_, folder=folder)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with some inputs of commands."""
    root = tmp_path_factory.mktemp("things")
    (root / "folder").mkdir()
    for kind in ("dat", "csv", "json"):
        (root / f"file.{kind}").write_text("something,else\n")
    np.save(root / "file.npy", np.arange(12.0).reshape(3, 4))
    return root


@pytest.mark.parametrize("command", list(COMMANDS))
@given(data=st.data())
@settings(few, max_examples=2 * few.max_examples)
def test_wrong_words_end_in_one_line(command: str, things: Path, data: st.DataObject) -> None:
    drawn = data.draw(words(command))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(things, Path(scratch) / "here"))
        code, out, err = run([command, *drawn], folder)
        if code == 1 and command == "check-data" and out:  # its result is on standard output
            return
        assert code in (0, 1, 2)
        assert "Traceback" not in err
        assert "unexpected" not in err, err  # unexpected error in cli.main
        if code:
            said = [line for line in err.splitlines() if line.startswith("csaligner: ")]
            assert len(said) == 1, err
            assert said[0].isprintable()
            assert err.endswith(said[0] + "\n"), err


def test_ctrl_c_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("csaligner.store.read_features.load_features", interrupted)
    code, out, err = run(["gap", "--image-features", "a", "--text-features", "b"], tmp_path)
    assert (code, out) == (130, "")
    assert err.lower().startswith("csaligner: interrupted")
    assert len(err.splitlines()) == 1
