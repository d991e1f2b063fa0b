"""Every code block of the README, the guides and CONTRIBUTING.md runs; every error line in them is the real one.

Blocks run in order, a page in a folder of its own with a few pictures and vectors, all in this process. Python blocks
share their names over a page. Of shell blocks the lines that start with csaligner run, with small sizes added
(SMALLER); other lines must be commands that a reader has (OTHERS).
"""

from __future__ import annotations

import code
import functools
import io
import pkgutil
import re
import shlex
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import csaligner.app.server
from csaligner import registry
from csaligner.checks import CSAlignerError
from csaligner.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
NOT_RUN = {"model hub": 1, "model hub and a GPU": 1, "several machines": 4}  # reasons, and how many blocks have each
BLOCK = re.compile(r"^(?:<!-- not run: (.*?) -->\n)?```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SMALLER = {  # appended to the page's options, which they override
    "compare": ["--quick", "--epochs", "1", "--jobs", "1", "--methods", "none,infonce"],
    "embed": ["--workers", "0"],
    "generate": ["--steps", "2"],
    "train": ["--epochs", "2"],
}
OTHERS = ("make ", "pip install ", ".ci/run", "torchrun ", "#SBATCH ", "export ", "srun ", "RAY_ADDRESS=")
COLOURS = ("red", "green", "blue", "black")
SHAPES = ("circle", "square", "cross", "bar", "frame")


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    not_run: str | None


def blocks(page: Path) -> list[Block]:
    return [Block(kind, text, reason or None) for reason, kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))]


def draw(shape: str, colour: str, size: int) -> Image.Image:
    picture = Image.new("RGB", (64, 64), "white")
    pen, box = ImageDraw.Draw(picture), (32 - size, 32 - size, 32 + size, 32 + size)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "frame":
        pen.rectangle(box, outline=colour, width=4)
    else:
        pen.line(box, fill=colour, width=6)
        if shape == "cross":
            pen.line((box[0], box[3], box[2], box[1]), fill=colour, width=6)
    return picture


@pytest.fixture(scope="module")
def opened_once() -> dict[str, Any]:
    """What makes the bundled encoders, by its place: commands share what each of them would load again."""
    places = [place for name, place in registry.ENCODERS.items() if name.startswith("bundled:")]
    return {place: functools.cache(pkgutil.resolve_name(place)) for place in places}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened_once: dict[str, Any], registries: None) -> Path:
    """Pictures with captions, a table of them, and vectors of 100 pairs; the search page answers nobody."""
    (tmp_path / "photos").mkdir()
    lines = ["image,caption"]
    for i in range(40):
        shape, colour = SHAPES[i % 5], COLOURS[i // 5 % 4]
        name = f"{colour}_{shape}-{i}"
        draw(shape, colour, 14 + i // 20 * 10).save(tmp_path / "photos" / f"{name}.png")
        (tmp_path / "photos" / f"{name}.txt").write_text(f"a {colour} {shape}")
        lines.append(f"{name}.png,a {colour} {shape}")
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(100, 16))
    images, texts = (shared @ rng.normal(size=(16, width)) + 0.5 for width in (64, 48))
    same = shared @ rng.normal(size=(16, 64)) + 0.5
    arrays = {"images": images, "texts": texts, "a": images, "b": same, "pairs": np.stack([images, same])}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array.astype(np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(csaligner.app.server, "serve", lambda index, settings, ready: ready("http://127.0.0.1:7860"))
    for place, opened in opened_once.items():
        monkeypatch.setattr(place.replace(":", "."), opened)
    return tmp_path


def call(words: list[str]) -> tuple[int, str]:
    """Exit code and what stood on the terminal; an error as `main` shows it."""
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, CSAlignerError):
        return 1, f"csaligner: {result.exception}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def run_shell(text: str) -> None:
    lines = text.replace("\\\n", " ").splitlines()
    for line in filter(None, map(str.strip, lines)):
        if not line.startswith("csaligner "):
            assert line.startswith(OTHERS), f"not a command that this test knows: {line}"
            continue
        words = shlex.split(line, comments=True)[1:]
        status, output = call([*words, *SMALLER.get(words[0], [])])
        assert status == 0, f"{line}\n{output}"


def check_failures(text: str) -> None:
    """Check `$ command` lines, each followed by its one-line error."""
    for command, wanted in re.findall(r"^\$ (.*)\n(.*)$", text, re.MULTILINE):
        words = shlex.split(command)
        assert words[0] == "csaligner"
        status, output = call(words[1:])
        assert (status, output.strip()) == (1, wanted), f"{command}\n{output}"


def check_session(text: str, names: dict[str, Any]) -> None:
    """`>>> line` lines, each followed by the error that it raises."""
    for line, wanted in re.findall(r"^>>> (.*)\n(.*)$", text, re.MULTILINE):
        with pytest.raises(CSAlignerError) as raised:
            exec(code.compile_command(line, "<page>", "exec") or "", names)
        assert f"{raised.type.__name__}: {raised.value}" == wanted


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_the_page_runs(page: Path, workplace: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.not_run:
            assert block.not_run in NOT_RUN
        elif block.kind == "python":
            exec(compile(block.text, f"<{page.name}>", "exec", dont_inherit=True), names)
        elif block.kind == "pycon":
            check_session(block.text, names)
        elif block.kind in ("console", "bash") and block.text.startswith("$ "):
            check_failures(block.text)
        elif block.kind in ("console", "bash"):
            run_shell(block.text)
        else:
            assert block.kind in ("toml",), f"{page.name}: a block of {block.kind}, which nobody runs"
    if page.stem == "CONTRIBUTING":
        check_that_it_keeps_the_contract("moments")


def check_that_it_keeps_the_contract(name: str) -> None:
    """The example of a divergence passes what every divergence of the package must."""
    from tests.contract import test_divergences as contract

    contract.test_it_is_a_symmetric_divergence(name, "reference")
    contract.test_gradient_by_finite_differences(name)
    contract.test_weights(name)


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    found = Counter(block.not_run for page in PAGES for block in blocks(page) if block.not_run)
    assert found == NOT_RUN


def test_every_fence_of_a_page_is_seen() -> None:
    for page in PAGES:
        fences = len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert fences == 2 * len(blocks(page)), page.name


def test_a_block_that_fails_fails_the_test(workplace: Path) -> None:
    with redirect_stderr(io.StringIO()):
        with pytest.raises(AssertionError, match="no such file"):
            run_shell("csaligner gap --image-features none.npy --text-features b.npy\n")
        with pytest.raises(AssertionError):
            check_failures("$ csaligner gap --image-features none.npy --text-features b.npy\ncsaligner: other words\n")
        with pytest.raises(AssertionError, match="not a command"):
            run_shell("csalign train\n")
