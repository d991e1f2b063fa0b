"""Every code block of README.md, CONTRIBUTING.md and the pages of docs runs; every error line in them is the real one.

The blocks of a page run in order and in this process, in a folder with a few images and vectors (MATERIALS) and the
stores and runs that the page starts from (GIVEN). Python blocks share their names over a page; those marked `python
ranks` run on two processes of one group. In shell blocks the lines that start with csaligner run, with small sizes
added (SMALLER) and the variables before them set; other lines must be commands that a reader has (OTHERS). Blocks of
text are diagrams.
"""

from __future__ import annotations

import base64
import code
import functools
import io
import json
import os
import pkgutil
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import csaligner.app.server
from csaligner import registry
from csaligner.checks import CSAlignerError
from csaligner.cli import app
from csaligner.distributed.gather import gather_ids
from tests.ranks import on_ranks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# reasons for which a block cannot run here, and how many blocks have each
NOT_RUN = {
    "minutes": 1,
    "an hour": 1,
    "model hub": 6,
    "model hub and a GPU": 4,
    "object storage": 1,
    "open_clip": 1,
    "several machines": 4,
}
OWN_TEST = ("bring_your_vectors", "query_side")  # run by a test of their own
BLOCK = re.compile(r"^(?:<!-- not run: (.*?) -->\n)?```(\w+(?: ranks)?)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
GIVEN = {  # what readers of a page are supposed to have
    "comparison": ["stores/coco"],
    "encoders": ["stores/photos"],
    "export": ["stores/coco", "runs/coco"],
    "faq": ["stores/photos"],
    "training": ["stores/coco", "stores/photos", "stores/news"],
}
TRAINS_ENCODERS = ("encoders",)  # pages whose commands change the weights of an encoder: it is not shared
SMALLER = {  # appended to the page's options, which they override
    "compare": ["--quick", "--epochs", "1", "--jobs", "1"],
    "embed": ["--workers", "0"],
    "generate": ["--steps", "2"],
    "sweep": ["--grids", "batch", "--epochs", "1", "--jobs", "1"],
    "train": ["--epochs", "2"],
}
OTHERS = (
    "make ",
    "pip install ",
    ".ci/run",
    "torchrun ",
    "accelerate launch ",
    "#SBATCH ",
    "srun ",
    "RAY_ADDRESS=",
    "export ",
    "curl ",  # tests/app/test_server.py requests every route of the API
)
COLOURS = ("red", "green", "blue", "black")
SHAPES = ("circle", "square", "cross", "bar", "frame")


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    not_run: str | None


def blocks_of(page: str) -> list[Block]:
    return [Block(kind, text, reason or None) for reason, kind, text in BLOCK.findall(page)]


def blocks(page: Path) -> list[Block]:
    return blocks_of(page.read_text(encoding="utf-8"))


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
    """What makes the bundled encoders, by its place: commands share what each of them would load and compute again."""
    places = [place for name, place in registry.ENCODERS.items() if name.startswith("bundled:")]
    return {place: functools.cache(remembering(pkgutil.resolve_name(place))) for place in places}


def remembering(make: Callable[..., Any]) -> Callable[..., Any]:
    """The encoder that `make` returns, which computes the features of an image once: all pages have the same images."""

    def opened(*settings: Any, **named: Any) -> Any:
        encoder = make(*settings, **named)
        if encoder.info.modality == "image":
            encoder.encode = functools.partial(encode_new, encoder.encode, {})
        return encoder

    return opened


def encode_new(encode: Callable[..., Any], known: dict[bytes, Any], prepared: Sequence[torch.Tensor]) -> torch.Tensor:
    keys = [image.numpy().tobytes() for image in prepared]
    if new := {key: image for key, image in zip(keys, prepared, strict=True) if key not in known}:
        known.update(zip(new, encode(list(new.values())), strict=True))
    return torch.stack([known[key] for key in keys])


def make_materials(folder: Path) -> None:
    """Captioned images as a folder, a table and a Karpathy file; one image; vectors of 100 pairs; a store; a run."""
    (folder / "photos").mkdir(parents=True)
    lines, images = ["image,caption"], []
    for i in range(40):
        shape, colour = SHAPES[i % 5], COLOURS[i // 5 % 4]
        name = f"{colour}_{shape}-{i}"
        draw(shape, colour, 14 + i // 20 * 10).save(folder / "photos" / f"{name}.png")
        (folder / "photos" / f"{name}.txt").write_text(f"a {colour} {shape}")
        lines.append(f"{name}.png,a {colour} {shape}")
        sentences = [{"raw": f"a {colour} {shape}"}]
        images.append({"filepath": "val2014", "filename": f"{name}.png", "split": "train", "sentences": sentences})
    (folder / "captions.csv").write_text("\n".join(lines))
    draw("circle", "red", 20).save(folder / "photo.jpg")
    shutil.copytree(folder / "photos", folder / "coco" / "val2014")
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(100, 16))
    image, text = (shared @ rng.normal(size=(16, width)) + 0.5 for width in (64, 48))
    same = shared @ rng.normal(size=(16, 64)) + 0.5
    arrays = {"images": image, "texts": text, "a": image, "b": same, "pairs": np.stack([image, same])}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array.astype(np.float32))
    write_answers(folder, text.astype(np.float32))
    store = folder / "given" / "stores" / "photos"
    assert call(["embed", "--data", str(folder / "photos"), "--out", str(store), "--workers", "0"])[0] == 0
    for name in ("coco", "news"):
        shutil.copytree(store, store.with_name(name))
    run = ["train", "--train-data", str(store.with_name("coco")), "--out", str(folder / "given" / "runs" / "coco")]
    assert call([*run, "--epochs", "1"])[0] == 0


def write_answers(folder: Path, rows: np.ndarray[Any, Any]) -> None:
    """The text vectors as services send them: base64 of float32, one answer per line, and of int8."""
    words = [base64.b64encode(row.tobytes()).decode() for row in rows]
    parts = [words[at : at + 40] for at in range(0, len(words), 40)]
    answers = [{"data": [{"index": n, "embedding": word} for n, word in enumerate(part)]} for part in parts]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, answers)))
    whole = np.round(127 * rows / np.abs(rows).max(axis=1, keepdims=True)).astype(np.int8)
    data = [{"embedding": base64.b64encode(row.tobytes()).decode()} for row in whole]
    (folder / "int8.json").write_text(json.dumps({"data": data}))


def share(monkeypatch: pytest.MonkeyPatch, opened_once: dict[str, Any]) -> None:
    for place, opened in opened_once.items():
        monkeypatch.setattr(place.replace(":", "."), opened)


@pytest.fixture
def workplace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened_once: dict[str, Any],
    registries: None,
    once: Callable[[str, Callable[[Path], object]], Path],
) -> Callable[[str], Path]:
    """Name of a page -> its folder, which becomes the working directory; the search page answers nobody."""
    monkeypatch.setattr(csaligner.app.server, "serve", lambda index, settings, ready: ready("http://127.0.0.1:7860"))
    with monkeypatch.context() as sharing:
        share(sharing, opened_once)
        materials = once("materials", make_materials)
    shutil.copytree(materials, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("given"))
    monkeypatch.chdir(tmp_path)

    def give(page: str) -> Path:
        if page not in TRAINS_ENCODERS:
            share(monkeypatch, opened_once)
        for name in GIVEN.get(page, ()):
            shutil.copytree(materials / "given" / name, tmp_path / name)
        return tmp_path

    return give


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
        ((settings, command),) = re.findall(r"^((?:[A-Z_]+=\S* )*)(.*)$", line)
        if not command.startswith("csaligner "):
            assert line.startswith(OTHERS), f"not a command that this test knows: {line}"
            continue
        words = shlex.split(command, comments=True)[1:]
        smaller = SMALLER.get(words[0], [])
        if words[0] == "compare" and "--methods" not in words:
            smaller = [*smaller, "--methods", "none,infonce"]
        if words[0] == "eval" and "generation" in words:
            smaller = ["--steps", "2", "--limit", "3"]
        with patch.dict(os.environ, (setting.split("=", 1) for setting in settings.split())):
            status, output = call([*words, *smaller])
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


def run_on_this_rank(text: str) -> None:
    """The block's loss is the same number on both ranks."""
    names: dict[str, Any] = {}
    exec(compile(text, "<ranks>", "exec"), names)
    totals = gather_ids(names["loss"].total.detach()[None])
    torch.testing.assert_close(totals[0], totals[1], rtol=0, atol=0)


def run_block(block: Block, page: str, names: dict[str, Any]) -> None:
    if block.kind == "python":
        exec(compile(block.text, f"<{page}>", "exec", dont_inherit=True), names)
    elif block.kind == "python ranks":
        on_ranks(2, run_on_this_rank, block.text)
    elif block.kind == "pycon":
        check_session(block.text, names)
    elif block.kind in ("console", "bash") and block.text.startswith("$ "):
        check_failures(block.text)
    elif block.kind in ("console", "bash"):
        run_shell(block.text)
    else:
        assert block.kind in ("nginx", "toml", "text"), f"{page}: a block of {block.kind}, which nobody runs"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page) and page.stem not in OWN_TEST], ids=lambda page: page.stem
)
def test_every_block_of_the_page_runs(page: Path, workplace: Callable[[str], Path]) -> None:
    workplace(page.stem)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.not_run:
            assert block.not_run in NOT_RUN
        else:
            run_block(block, page.name, names)
    if page.stem == "CONTRIBUTING":
        check_that_they_keep_the_contract("moments", "low_rank", Path.cwd())


def check_that_they_keep_the_contract(divergence: str, adapter: str, folder: Path) -> None:
    """The examples pass what every divergence and adapter of the package must."""
    from tests.contract import test_adapters, test_divergences

    test_divergences.test_it_is_a_symmetric_divergence(divergence, "reference")
    test_divergences.test_gradient_by_finite_differences(divergence)
    test_divergences.test_weights(divergence)
    test_adapters.test_one_space_of_unit_rows_saved_and_loaded_to_the_bit(adapter, (9, 5), folder)


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    found = Counter(block.not_run for page in PAGES for block in blocks(page) if block.not_run)
    assert found == NOT_RUN


def test_every_block_of_a_page_is_seen() -> None:
    """Every fence opens or closes a block with a language, and no command hides in an indented block."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) == 2 * len(blocks(page)), page.name
        assert not re.findall(r"^(?: {4}|\t)(?:csaligner|python|pip|make|import|from) .*", BLOCK.sub("", text), re.M), (
            page
        )


def test_a_block_that_fails_fails_the_test(workplace: Callable[[str], Path]) -> None:
    workplace("none")
    with redirect_stderr(io.StringIO()):
        with pytest.raises(AssertionError, match="no such file"):
            run_shell("csaligner gap --image-features none.npy --text-features b.npy\n")
        with pytest.raises(AssertionError):
            check_failures("$ csaligner gap --image-features none.npy --text-features b.npy\ncsaligner: other words\n")
        with pytest.raises(AssertionError, match="not a command"):
            run_shell("csalign train\n")
