"""Command line under adverse conditions: encodings, closed pipes, unexpected errors, earlier option names."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from csaligner import cli
from csaligner.cli.common import print_json
from tests.support.commands import csaligner

COMMAND = [sys.executable, "-m", "csaligner.cli"]


@pytest.fixture
def features(tmp_path: Path) -> list[str]:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(12, 4)))
    return ["gap", "--image-features", str(tmp_path / "a.npy"), "--text-features", str(tmp_path / "a.npy")]


def main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["csaligner", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_help_needs_no_numerics() -> None:
    code = (
        "import sys; from csaligner.cli import main\n"
        "sys.argv = ['csaligner', '--help']\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    panels = [done.stdout.index(f" {panel} ") for panel in ("Data", "Search", "Train", "Measure", "Generate", "Export")]
    assert panels == sorted(panels)


def test_version() -> None:
    from csaligner import __version__

    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"csaligner {__version__}\n"


class Terminal:
    """Standard output and error of an encoding, as Python opens them."""

    def __init__(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bytes = {name: io.BytesIO() for name in ("stdout", "stderr")}
        self._encoding = encoding
        for name, buffer in self._bytes.items():
            errors = "strict" if name == "stdout" else "backslashreplace"
            monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding, errors))

    def text(self, name: str) -> str:
        getattr(sys, name).flush()
        return self._bytes[name].getvalue().decode(self._encoding)


def test_a_terminal_of_ascii_does_not_end_the_program(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "eval", "--run", str(tmp_path / "日本")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "unexpected" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_of_another_encoding_does_not_end_the_program(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "日本.png").write_bytes(b"no image")
    terminal = Terminal(encoding, monkeypatch)
    for words in (["check-data", str(tmp_path), "-q"], ["eval", "--run", "日本"], ["--help"]):
        assert main(monkeypatch, *words) in (0, 1)
    said = terminal.text("stderr")
    assert "unexpected" not in said
    assert "Traceback" not in said
    assert "search" in terminal.text("stdout")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_is_valid_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(encoding, monkeypatch)
    print_json({"caption": "Käse ☃"})
    assert json.loads(terminal.text("stdout")) == {"caption": "Käse ☃"}


@pytest.mark.parametrize("words", [["eval", "--run", b"\xff"], ["search", "nowhere", b"\xff\xfe"], [b"\xff"]])
def test_bytes_that_are_no_text_are_an_argument_like_another(
    words: list[str | bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    terminal = Terminal("utf-8", monkeypatch)
    assert main(monkeypatch, *map(os.fsdecode, words)) in (1, 2)  # as Python decodes the arguments of a program
    said = terminal.text("stderr")
    assert "unexpected" not in said
    assert len(said.splitlines()) == 1


def test_a_closed_pipe_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "--help"], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_unexpected_error_is_one_line_and_a_file(
    features: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken inside")

    monkeypatch.setattr("csaligner.store.read_features.load_features", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(monkeypatch, *features) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    (written,) = tmp_path.glob("csaligner-error-*.txt")
    assert str(written) in said
    assert "broken inside" in written.read_text()
    monkeypatch.setattr(sys, "argv", ["csaligner", *features, "--debug"])  # anywhere on the line
    with pytest.raises(RuntimeError, match="broken inside"):
        cli.main()


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "--train-data", "openmoij", "--out", "x"],
        ["embed", "--train-data=openmoij", "--out", "x"],
        ["embed", "--data", "openmoij", "--out", "x"],
    ],
)
def test_earlier_option_names_still_work(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, *words) == 1
    assert "did you mean 'openmoji'" in capsys.readouterr().err


def test_arrays_in_one_file_are_chosen_by_key(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(2, 12, 4))
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", a=x[0], b=x[1])
    done = []
    for name, keys in {"x.npy": ("0", "1"), "x.npz": ("a", "b")}.items():
        files = [word for side in ("image", "text") for word in (f"--{side}-features", str(tmp_path / name))]
        chosen = ["--image-key", keys[0], "--text-key", keys[1]]
        assert csaligner("gap", *files).returncode == 1
        done.append(csaligner("gap", *files, *chosen).stdout)
        assert csaligner("import", *files, *chosen, "--out", tmp_path / f"of-{name}").returncode == 0
    assert done[0] == done[1]
    assert "gap/centroid" in done[0]


@pytest.mark.filterwarnings("default::UserWarning")
def test_a_warning_is_one_line_and_said_once(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4))
    x[[3, 7]] = 0
    np.save(tmp_path / "x.npy", x)
    done = csaligner("gap", "--image-features", tmp_path / "x.npy", "--text-features", tmp_path / "x.npy")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: ")
    assert "2 of 30 rows are zero (first: row 3)" in line


def test_what_is_not_an_exception_is_one_line_too(features: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        """As raised by libraries in Rust."""

    def panics(*_: object) -> None:
        raise Panic("internal\nerror")

    monkeypatch.setattr("csaligner.store.read_features.load_features", panics)
    done = csaligner(*features)
    assert done.returncode == 1
    assert "unexpected Panic" in done.stderr
    path = Path(re.search(r"traceback in (\S+)", done.stderr)[1])  # type: ignore[index]
    assert "internal\nerror" in path.read_text()
    path.unlink()
    monkeypatch.setattr("tempfile.mkstemp", _no_space)
    assert "unexpected Panic" in csaligner(*features).stderr


def _no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")
