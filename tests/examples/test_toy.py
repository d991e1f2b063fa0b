"""examples/toy.py: the estimate equals the closed form; mutual information does not depend on the shift."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "toy.py"


def test_divergence_sees_the_shift_and_information_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, record = tmp_path / "toy.svg", tmp_path / "toy.json"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--out", str(out), "--json", str(record)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    found = json.loads(record.read_text(encoding="utf-8"))
    for r in found["records"]:
        assert r["mutual_information"] == pytest.approx(found["mutual_information_exact"], rel=0.05)
        assert r["d_cs"] == pytest.approx(r["d_cs_exact"], rel=0.05, abs=0.01)
    assert found["records"][-1]["d_cs"] > 3 * found["mutual_information_exact"]
    assert out.read_text(encoding="utf-8").count("<svg") == 1
