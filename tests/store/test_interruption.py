"""Interrupted or damaged embed runs: the next call resumes, with bit-identical results."""

from __future__ import annotations

import dataclasses
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from csaligner.checks import InputError
from csaligner.store.embed import ExtractSettings, embed
from csaligner.types import Dataset, Item

Listed = Callable[..., Dataset]
MakeItems = Callable[[int], list[Item]]
SETTINGS = ExtractSettings(shard_size=4, batch_size=2, workers=0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Stops:
    """Encoder that raises in its n-th call of encode."""

    def __init__(self, encoder: Any, calls: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.info, self.prepare, self._encoder = encoder.info, encoder.prepare, encoder
        self._calls, self._error = calls, error

    def encode(self, prepared: Sequence[Any]) -> Tensor:
        self._calls -= 1
        if self._calls == 0:
            raise self._error
        return self._encoder.encode(prepared)  # type: ignore[no-any-return]


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6])
def test_ctrl_c_at_any_batch(
    tmp_path: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any, call: int
) -> None:
    dataset = listed(make_items(11))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    embed(dataset, image_encoder, text_encoder, whole, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        embed(dataset, Stops(image_encoder, call), text_encoder, broken, SETTINGS)
    image_encoder.seen = 0
    embed(dataset, image_encoder, text_encoder, broken, SETTINGS)
    finished = 4 * ((call - 1) // 2)
    assert image_encoder.seen == 11 - finished  # finished shards are not embedded again
    assert files(broken) == files(whole)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_ctrl_c_while_texts_are_encoded(
    tmp_path: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any, call: int
) -> None:
    dataset = listed(make_items(11))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    embed(dataset, image_encoder, text_encoder, whole, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        embed(dataset, image_encoder, Stops(text_encoder, call), broken, SETTINGS)
    with pytest.raises(KeyboardInterrupt):  # and again
        embed(dataset, image_encoder, Stops(text_encoder, 1), broken, SETTINGS)
    embed(dataset, image_encoder, text_encoder, broken, SETTINGS)
    assert files(broken) == files(whole)


def test_broken_pictures_are_remembered_over_an_interruption(
    tmp_path: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    items = make_items(11)
    Path(str(items[1].image)).unlink()
    Path(str(items[9].image)).unlink()
    settings = dataclasses.replace(SETTINGS, max_bad=0.2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    embed(listed(items), image_encoder, text_encoder, whole, settings)
    with pytest.raises(KeyboardInterrupt):
        embed(listed(items), Stops(image_encoder, 3), text_encoder, broken, settings)
    store = embed(listed(items), image_encoder, text_encoder, broken, settings)
    assert [entry.image_id for entry in store.manifest.skipped] == ["id1", "id9"]
    assert files(broken) == files(whole)


def test_the_shard_size_of_an_unfinished_store_stays(
    tmp_path: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    dataset = listed(make_items(11))
    with pytest.raises(KeyboardInterrupt):
        embed(dataset, Stops(image_encoder, 3), text_encoder, tmp_path / "out", SETTINGS)
    other = dataclasses.replace(SETTINGS, shard_size=7)
    store = embed(dataset, image_encoder, text_encoder, tmp_path / "out", other)
    assert [shard.images for shard in store.manifest.shards] == [4, 4, 3]


def test_a_finished_shard_that_was_damaged_since_is_named(
    tmp_path: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    dataset = listed(make_items(11))
    with pytest.raises(KeyboardInterrupt):
        embed(dataset, Stops(image_encoder, 5), text_encoder, tmp_path / "out", SETTINGS)
    (tmp_path / "out/img_emb/img_emb_1.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"img_emb/img_emb_1\.npy"):
        embed(dataset, image_encoder, text_encoder, tmp_path / "out", SETTINGS)


SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
import torch
from csaligner.store.embed import ExtractSettings, embed
from csaligner.types import EncoderInfo, Item

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell begins without it

class Image:
    info = EncoderInfo("mean", "1", "image", 3, {"size": 8})
    def __init__(self, signal_at_fourth_call=None):
        self.calls, self.signal = 0, signal_at_fourth_call
    def prepare(self, item):
        return torch.from_numpy(np.asarray(item, dtype=np.float32).mean((0, 1)))
    def encode(self, prepared):
        self.calls += 1
        if self.calls == 4 and self.signal:
            os.kill(os.getpid(), self.signal)
        return torch.stack(list(prepared))

class Text:
    info = EncoderInfo("length", "1", "text", 2, {})
    def prepare(self, item):
        return item
    def encode(self, prepared):
        return torch.tensor([[float(len(t)), 1.0] for t in prepared])

class Pictures:
    name, attribution = "pictures", ""
    def __init__(self, folder):
        self.folder = Path(folder)
    def items(self):
        return [Item(f"{i}", self.folder / f"{i}.png", (f"picture {i}",), f"{i}") for i in range(11)]

if __name__ == "__main__":
    folder, out, number = sys.argv[1:]
    embed(Pictures(folder), Image(int(number)), Text(), out, ExtractSettings(4, 2, workers=2))
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process(tmp_path: Path, make_items: MakeItems, number: signal.Signals) -> None:
    folder = Path(str(make_items(11)[0].image)).parent
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [sys.executable, str(script), str(folder), str(broken), str(number.value)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -number, killed.stderr
    assert (broken / "img_emb/img_emb_0.npy").exists()
    assert not (broken / "img_emb/img_emb_1.npy").exists()
    (broken / "img_emb/.img_emb_1.npy.0.tmp").write_bytes(b"half")  # left by a kill during a write
    part = runpy.run_path(str(script))
    encoder = part["Image"]()
    embed(part["Pictures"](folder), encoder, part["Text"](), broken, SETTINGS)
    assert encoder.calls == 4  # 7 images, 2 at a time, in shards of 4 and 3
    embed(part["Pictures"](folder), part["Image"](), part["Text"](), whole, SETTINGS)
    assert files(broken) == files(whole)


def test_a_worker_that_dies_is_one_line(
    tmp_path: Path, make_items: MakeItems, listed: Listed, image_encoder: Any, text_encoder: Any
) -> None:
    from csaligner.checks import CSAlignerError

    main = os.getpid()

    class Deadly:
        info, encode = image_encoder.info, staticmethod(image_encoder.encode)

        def prepare(self, item: Any) -> Any:
            if os.getpid() != main:
                os.kill(os.getpid(), signal.SIGKILL)
            return image_encoder.prepare(item)

    dataset = listed(make_items(3))
    with pytest.raises(CSAlignerError, match=r"process.*died") as caught:
        embed(dataset, Deadly(), text_encoder, tmp_path / "out", dataclasses.replace(SETTINGS, workers=1))
    assert "\n" not in str(caught.value)
    assert embed(dataset, Deadly(), text_encoder, tmp_path / "out", SETTINGS).n_images == 3
