"""Batch samplers: epochs, ranks and unpaired rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from csaligner.store.store import write_store
from csaligner.training.prefetch import Waiting, read_ahead
from csaligner.training.samplers import (
    JoinedRows,
    PairSampler,
    StoredPairs,
    StoredRows,
    UnpairedRows,
    UnpairedSampler,
    own_part,
)
from csaligner.types import Batch, EncoderInfo, Inputs, PairedFeatures
from tests.ranks import on_ranks
from tests.support.features import make_pairs


def features(n: int = 40) -> PairedFeatures:
    return make_pairs(n, captions=2)


def rows(side: Inputs) -> Tensor:
    assert isinstance(side, Tensor)
    return side


def same(a: Batch, b: Batch) -> bool:
    pairs = ((rows(a.image), rows(b.image)), (rows(a.text), rows(b.text)))
    ids = ((a.image_ids, b.image_ids), (a.text_ids, b.text_ids))
    return all(torch.equal(x, y) for x, y in (*pairs, *ids))


@pytest.mark.parametrize("captions", ["one", "all"])
def test_an_epoch_holds_every_image_once_with_its_own_captions(captions: Literal["one", "all"]) -> None:
    f = features()
    sampler = PairSampler(f, 16, captions, seed=3)
    batches = list(sampler.epoch(2))
    assert [len(b.image_ids) for b in batches] == [14, 13, 13]
    assert sorted(torch.cat([b.image_ids for b in batches]).tolist()) == list(range(40))
    for b in batches:
        assert torch.equal(rows(b.image), f.image[b.image_ids])
        wanted = b.image_ids.repeat_interleave(2) if captions == "all" else b.image_ids
        assert torch.equal(b.text_ids, wanted)
        for row, owner in zip(rows(b.text), b.text_ids.tolist(), strict=True):
            assert any(torch.equal(row, own) for own in f.text[f.text_to_image == owner])
    assert all(same(a, b) for a, b in zip(batches, sampler.epoch(2), strict=True))
    assert not torch.equal(batches[0].image_ids, next(sampler.epoch(3)).image_ids)


def test_a_store_gives_the_same_batches_as_its_features(tmp_path: Path) -> None:
    f = features()
    infos = EncoderInfo("a", "1", "image", 8, {}), EncoderInfo("b", "1", "text", 6, {})
    store = write_store(tmp_path / "store", f, infos, splits=dict.fromkeys(f.image_ids[:30], "train"))
    held = PairSampler(store.features("train"), 16, "one", seed=1)
    read = PairSampler(StoredPairs.of(store, "train"), 16, "one", seed=1)
    assert all(same(a, b) for a, b in zip(held.epoch(0), read.epoch(0), strict=True))
    joined = JoinedRows([f.image, StoredRows(store, "image", store.rows_of("image", "train"))])
    assert len(joined) == 40 + len(store.features("train").image)
    assert torch.equal(joined[torch.tensor([41, 3, 40])], torch.stack([f.image[1], f.image[3], f.image[0]]))


def ranks_share_the_batches_of_one_process(whole: list[list[int]]) -> None:
    sampler = UnpairedSampler(PairSampler(features(7), 4, seed=1), UnpairedRows(features(5).image, 3), None, seed=1)
    for batch, ids in zip(sampler.epoch(0), whole, strict=True):
        own = own_part(torch.tensor(ids)).tolist()
        assert batch.image_ids[batch.image_ids >= 0].tolist() == own
        assert len(rows(batch.image)) == len(own) + len(own_part(torch.arange(3)))


def test_ranks_share_the_batches_of_one_process() -> None:
    whole = [b.image_ids.tolist() for b in PairSampler(features(7), 4, seed=1).epoch(0)]
    assert [len(ids) for ids in whole] == [4, 3]
    on_ranks(2, ranks_share_the_batches_of_one_process, whole)


def test_unpaired_rows_have_no_id_and_come_once_a_pass() -> None:
    f, extra = features(), torch.arange(9.0)[:, None].repeat(1, 8)
    pairs = PairSampler(f, 16, seed=3)
    sampler = UnpairedSampler(pairs, UnpairedRows(extra, 3), UnpairedRows(torch.ones(2, 6), 5), seed=3)
    assert sampler.batches_per_epoch == 3
    seen: list[float] = []
    for plain, batch in zip(pairs.epoch(0), sampler.epoch(0), strict=True):
        n = len(plain.image_ids)
        assert torch.equal(rows(batch.image)[:n], rows(plain.image))
        assert torch.equal(batch.image_ids[:n], plain.image_ids)
        assert batch.image_ids[n:].tolist() == [-1] * 3
        assert batch.text_ids[n:].tolist() == [-1] * 2  # there are only two
        seen += rows(batch.image)[n:, 0].tolist()
    assert sorted(seen) == list(range(9))
    again = torch.cat([rows(b.image)[-3:, 0] for b in sampler.epoch(1)]).tolist()
    assert sorted(again) == list(range(9))
    assert again != seen
    assert all(same(a, b) for a, b in zip(sampler.epoch(1), sampler.epoch(1), strict=True))


def test_reading_ahead_changes_nothing_and_passes_errors_on() -> None:
    sampler = PairSampler(features(), 16, seed=3)
    waiting = Waiting()
    for depth in (0, 2, 9):
        ahead = waiting.over(read_ahead(sampler.epoch(0), depth))
        assert all(same(a, b) for a, b in zip(sampler.epoch(0), ahead, strict=True))
    assert waiting.seconds > 0

    def broken() -> Iterator[Batch]:
        yield next(sampler.epoch(0))
        raise OSError("a disk that is gone")

    batches = read_ahead(broken(), 2)
    next(batches)
    with pytest.raises(OSError, match="gone"):
        next(batches)
