"""Images of a store in the report of a run."""

from __future__ import annotations

import base64
import io
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.config import TrainConfig, build_config
from csaligner.datasets import open_dataset
from csaligner.reporting.collect import report_data
from csaligner.reporting.record import MethodResult
from csaligner.reporting.report import render_report
from csaligner.store.embed import ExtractSettings, embed
from csaligner.types import EncoderInfo, PairedFeatures

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (200, 200, 10)]


class Colour:
    info = EncoderInfo("colour", "1", "image", 3, {"size": 16})

    def prepare(self, item: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(item.resize((1, 1))).reshape(3)).float()

    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(prepared))


class Numbers:
    info = EncoderInfo("numbers", "1", "text", 3, {})

    def prepare(self, item: str) -> str:
        return item

    def encode(self, prepared: Sequence[str]) -> Tensor:
        return torch.tensor([COLOURS[int(text.split()[-1])] for text in prepared]).float()


def png(colour: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, "PNG")
    return stream.getvalue()


def tar(folder: Path) -> Path:
    with tarfile.open(folder / "t.tar", "w") as file:
        for n, colour in enumerate(COLOURS):
            for name, content in ((f"{n}.png", png(colour)), (f"{n}.txt", f"colour {n}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return folder / "t.tar"


def parquet(folder: Path) -> Path:
    cells = {"image": [png(c) for c in COLOURS], "caption": [f"colour {n}" for n in range(4)]}
    pq.write_table(pa.table(cells), folder / "t.parquet")
    return folder / "t.parquet"


@pytest.mark.parametrize("make", [tar, parquet])
def test_pictures_inside_tars_and_tables_are_shown(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    settings = ExtractSettings(workers=0)
    store = embed(open_dataset(str(make(tmp_path))), Colour(), Numbers(), tmp_path / "store", settings)
    found = store.features()
    unit = PairedFeatures(
        normalize(found.image, dim=1),
        normalize(found.text, dim=1),
        found.text_to_image,
        found.image_ids,
        found.captions,
    )
    results = [
        MethodResult(name, 0, {"image_to_text_recall@1": 1.0, "text_to_image_recall@1": 1.0})
        for name in ("before", "ours")
    ]
    about: dict[str, object] = {"versions": {}, "commit": None}
    data = report_data(store, build_config(TrainConfig, {}), results, {"before": unit, "ours": unit}, about)
    page = render_report(data)
    shown = set()
    for encoded in re.findall(r'src="data:image/\w+;base64,([^"]+)"', page):
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            if picture.size == (16, 16):
                shown.add(tuple(round(v / 60) for v in picture.convert("RGB").getpixel((8, 8))))  # type: ignore[union-attr]
    assert shown >= {tuple(round(v / 60) for v in colour) for colour in COLOURS}
