"""Damaged images, deleted files and concurrent writers while indexing: reported, without losing the others."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from csaligner.checks import CSAlignerError
from csaligner.locks import lock_path
from csaligner.search.build import BuildSettings, build_index
from csaligner.search.index import Index
from csaligner.types import Item
from tests.support.colours import ColourImages
from tests.support.encoders import Listed


def bomb(side: int) -> bytes:
    """Return a PNG of 60 bytes with side x side pixels in its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def build(world: Any, out: Path) -> Any:
    return build_index(str(world.folder), out, str(world.run), encoders=world.encoders, settings=BuildSettings())


def test_a_bomb_an_empty_file_and_words_are_left_out_by_name(world: Any, tmp_path: Path) -> None:
    world.picture("good.png", (255, 0, 0))
    for name, content in (("bomb.png", bomb(50_000)), ("empty.png", b""), ("words.jpg", b"no picture")):
        (world.folder / name).write_bytes(content)
    index, report = build(world, tmp_path / "ix")
    assert [hit.id for hit in index.search("255 0 0")] == ["good"]
    reasons = sorted(report.skipped)
    assert [name in reason for name, reason in zip(("bomb", "empty", "words"), reasons, strict=True)] == [True] * 3
    assert "50,000,000" in reasons[0]
    assert not any("\n" in reason for reason in reasons)


def test_a_bomb_as_the_question_is_one_line(world: Any, tmp_path: Path) -> None:
    world.picture("good.png", (255, 0, 0))
    index, _ = build(world, tmp_path / "ix")
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(50_000))
    with pytest.raises(CSAlignerError, match="pixels") as caught:
        index.search(path)
    assert "\n" not in str(caught.value)


def test_files_that_vanish_while_they_are_indexed(world: Any, tmp_path: Path) -> None:
    """b.png is gone when the reader has listed it; c.png goes when the first image is encoded."""
    paths = {name: world.picture(f"{name}.png", (255, 0, 0)) for name in "abc"}

    class Vanishing(Listed):
        def items(self) -> Sequence[Item]:
            listed = super().items()
            paths["b"].unlink(missing_ok=True)
            return listed

    class Removing(ColourImages):
        def prepare(self, item: Image.Image) -> Tensor:
            paths["c"].unlink(missing_ok=True)
            return super().prepare(item)

    data = Vanishing([Item(name, path, (), group=name) for name, path in paths.items()])
    encoders = (Removing(), world.texts)
    settings = BuildSettings(workers=1)  # in order
    index, report = build_index(data, tmp_path / "ix", str(world.run), encoders=encoders, settings=settings)
    assert [hit.id for hit in index.search("255 0 0")] == ["a"]
    assert [name in reason for name, reason in zip("bc", sorted(report.skipped), strict=True)] == [True] * 2
    assert all("no such file" in reason.lower() for reason in report.skipped)


def test_a_picture_that_broke_leaves_the_index(world: Any, tmp_path: Path) -> None:
    world.picture("a.png", (255, 0, 0))
    path = world.picture("b.png", (0, 0, 255))
    build(world, tmp_path / "ix")
    path.write_bytes(b"broken")
    index, report = build(world, tmp_path / "ix")
    assert [hit.id for hit in index.search("0 0 255")] == ["a"]
    assert (report.deleted, len(report.skipped)) == (1, 1)
    world.picture("b.png", (0, 0, 255))
    again, _ = build(world, tmp_path / "ix")
    assert [hit.id for hit in again.search("0 0 255", k=1)] == ["b"]


def test_a_writer_in_another_process_is_heard_of(world: Any, tmp_path: Path) -> None:
    world.picture("a.png", (255, 0, 0))
    build(world, tmp_path / "ix")
    lock = lock_path(tmp_path / "ix")
    holder = (
        "import sys\nfrom filelock import FileLock\n"
        f"with FileLock({str(lock)!r}):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(CSAlignerError, match="another process"):
        build(world, tmp_path / "ix")
    assert len(Index.open(tmp_path / "ix", world.encoders).search("255 0 0")) == 1  # readers still work
    other.kill()
    other.wait()
    build(world, tmp_path / "ix")  # a killed writer leaves no lock


def test_names_with_markup_and_control_characters_stay_data(world: Any, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>\x1b[31m.png"
    world.picture(name, (255, 0, 0), "<script>alert(1)</script>")
    index, _ = build(world, tmp_path / "ix")
    hits = {hit.id: hit for hit in index.search("255 0 0", k=5)}
    assert Path(name).stem in hits
    assert "<script>alert(1)</script>" in {hit.text for hit in hits.values()}
