"""Malicious inputs are rejected in one line or read without harm; see malicious.CASES."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csaligner.datasets.images.load import load_image

from .makers import hidden_svg, secret_svg
from .malicious import CASES

ROOT = Path(__file__).parents[2]
# loads transformers: run by `make nightly`
HEAVY = "CSALIGNER_HEAVY" in os.environ and importlib.util.find_spec("transformers") is not None


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Run all cases in one single-threaded process, which forks a child for each."""
    out = tmp_path_factory.mktemp("malicious") / "found.json"
    command = [sys.executable, "-m", "tests.security", "--out", str(out), *(["--heavy"] if HEAVY else [])]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return {case["tries"]: case for case in json.loads(out.read_text(encoding="utf-8"))["cases"]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.tries}")
def test_it_is_refused_or_harmless(found: dict[str, dict[str, Any]], case: Any) -> None:
    if case.heavy and not HEAVY:
        pytest.skip("CSALIGNER_HEAVY is not set, or transformers is not installed")
    result = found[case.tries]
    if case.answer is None:
        assert result["outcome"] == "read", result["text"]
    else:
        assert result["outcome"] == "refused", result["text"]
        assert re.search(case.answer, result["text"]), result["text"]
    assert result["megabytes"] < 1024


@pytest.mark.parametrize("make", [secret_svg, hidden_svg])
def test_a_drawing_shows_no_other_file(tmp_path: Path, make: Any) -> None:
    picture = load_image(make(tmp_path))
    assert picture.getcolors() == [(picture.width * picture.height, (255, 255, 255))]


def test_a_bitmap_inside_a_drawing_is_still_drawn(tmp_path: Path) -> None:
    import base64
    import io

    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (250, 0, 0)).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    text = f'<image href="data:image/png;base64,{data}" width="9" height="9"/>'
    (tmp_path / "a.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{text}</svg>')
    assert load_image(tmp_path / "a.svg").getpixel((100, 100)) == (250, 0, 0)
