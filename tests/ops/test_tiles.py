"""Division of rows into tiles."""

from __future__ import annotations

import pytest
import torch

from csaligner.ops import tiles

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("rows", "size"), [(1, 32), (100, 128), (512, 512), (513, 288), (1100, 384), (8192, 512), (8193, 512)]
)
def test_blocks_are_of_one_size_in_steps_of_32(rows: int, size: int) -> None:
    assert tiles.block_size(rows, CPU) == size


@pytest.mark.parametrize("rows", [1, 31, 512, 513, 1100, 5000])
def test_blocks_cover_every_row_once(rows: int) -> None:
    seen = torch.zeros(rows)
    for block in tiles.blocks(seen):
        assert block.stop - block.start <= tiles.CPU_BLOCK
        seen[block] += 1
    assert bool((seen == 1).all())


def test_buffers_are_lent_as_one_piece() -> None:
    buffers = tiles.Buffers.between(torch.zeros(700, 3), torch.zeros(40, 3), 2)
    first, second = buffers.lend(0, 350, 40), buffers.lend(1, 350, 40)
    assert first.is_contiguous()
    first.fill_(1)
    second.fill_(2)
    assert bool((first == 1).all())
    assert buffers.lend(0, 10, 4).shape == (10, 4)
