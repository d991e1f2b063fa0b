"""Options of `csaligner embed` that need no images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from csaligner.checks import InputError
from csaligner.cli import app
from csaligner.store.store import Store


def test_texts_alone_on_the_command_line(tmp_path: Path, text_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csaligner.pipeline.open_encoder", lambda name, modality: text_encoder)
    path = tmp_path / "captions.txt"
    path.write_text("a dog\na cat\n\n")
    words = ["embed", "--train-data", str(path), "--out", str(tmp_path / "store"), "--text-only", "-q"]
    done = CliRunner().invoke(app, [*words, "--precision", "fp16"])
    assert done.exit_code == 0, done.output
    store = Store.open(tmp_path / "store")
    assert (store.sides, store.n_captions, store.manifest.dtype) == (("text",), 2, "float16")
    assert store.encoders["text"].id == "fake-text"


def test_words_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a dog\n")
    words = ["embed", "--train-data", str(path), "--out", str(tmp_path / "store"), "-q"]
    cases = [
        (["--image-only", "--text-only"], "mutually exclusive"),
        (["--precision", "int8"], "precision.*'int8'"),
        (["--runner", "spark", "--text-only"], "runner.*'spark'"),
        (["--data-format", "coc"], "data_format.*'coc'.*'coco'"),
        (["--csv-img-key", "x"], "'image_key'"),
    ]
    for more, message in cases:
        done = CliRunner().invoke(app, [*words, *more])
        assert isinstance(done.exception, InputError)
        assert re.search(message, str(done.exception))
    assert not (tmp_path / "store").exists()
