"""Several batches in flight: order, equal features, and errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csaligner.checks import CSAlignerError
from csaligner.store.decode_workers import Decoded
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.streams import encoded, streams_of
from csaligner.types import Dataset, EncoderInfo, Item


class Slow:
    """Encoder that finishes later batches sooner; counts batches in flight."""

    info = EncoderInfo("slow", "1", "image", 1, {"size": 8})
    concurrent = True

    def __init__(self, breaks_at: int = -1) -> None:
        self.most, self.calls, self.threads = 0, 0, set[int]()
        self._now, self._lock, self._breaks_at = 0, threading.Lock(), breaks_at

    def prepare(self, item: Any) -> Tensor:
        return torch.tensor([float(item.getpixel((0, 0))[0])])

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        with self._lock:
            self._now += 1
            self.calls += 1
            self.most = max(self.most, self._now)
            self.threads.add(torch.get_num_threads())
        first = int(prepared[0])
        time.sleep(max(0.0, 0.02 - first / 1000))
        with self._lock:
            self._now -= 1
        if first == self._breaks_at:
            raise CSAlignerError("broken")
        return torch.stack(list(prepared))


def batches(n: int) -> Iterator[Decoded]:
    for i in range(n):
        good = (i,) if i % 4 else ()
        yield Decoded(good, [torch.tensor([float(i)])] if good else [], {} if good else {i: "bad"})


@pytest.mark.parametrize("streams", [1, 3])
def test_in_order_and_as_many_at_once_as_asked_for(streams: int) -> None:
    encoder, before = Slow(), torch.get_num_threads()
    found = list(encoded(encoder, batches(20), streams))
    assert [(*batch.good, *batch.bad) for batch, _ in found] == [(i,) for i in range(20)]
    assert [x is None for _, x in found] == [i % 4 == 0 for i in range(20)]
    assert [float(x.features) for _, x in found if x is not None] == [i for i in range(20) if i % 4]
    assert 1 <= encoder.most <= streams
    assert streams == 1 or (encoder.most > 1 and encoder.threads == {1})
    assert torch.get_num_threads() == before


def test_an_error_stops_the_rest() -> None:
    encoder = Slow(breaks_at=2)
    with pytest.raises(CSAlignerError, match="broken"):
        list(encoded(encoder, batches(200), 2))
    assert encoder.calls < 20


def test_a_store_made_with_streams_is_the_same(
    tmp_path: Path, make_items: Callable[[int], list[Item]], listed: Callable[..., Dataset], text_encoder: Any
) -> None:
    dataset, stores, before = listed(make_items(11)), [], torch.get_num_threads()
    settings = ExtractSettings(shard_size=4, batch_size=2, workers=0)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert streams_of(Slow()) == threads
            stores.append(embed(dataset, Slow(), text_encoder, tmp_path / str(threads), settings))
    finally:
        torch.set_num_threads(before)
    assert stores[0].sha256 == stores[1].sha256
