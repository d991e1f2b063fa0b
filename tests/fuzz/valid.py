"""Small valid inputs of every format, written to an empty folder: seeds of the fuzzer."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from csaligner.types import EncoderInfo, PairedFeatures

Make = Callable[[Path], Path]
COLOURS = ("red", "green", "blue", "white")
SVG = (
    '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY c "red">]>'
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="10"><g id="a"><rect width="9" height="9" fill="&c;"/>'
    '<text x="1" y="8">hello</text></g><use href="#a" x="10"/></svg>'
)


def picture(kind: str = "PNG", colour: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(stream, kind)
    return stream.getvalue()


def pictures(folder: Path) -> list[str]:
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(picture("PNG", colour))
    return [f"{colour}.png" for colour in COLOURS]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [{"image": name, "caption": f"a {name[:-4]} square", "split": "train"} for name in pictures(folder)]


def table(suffix: str) -> Make:
    def make(folder: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path, found = folder / f"table{suffix}", rows(folder)
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(found), path)
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        else:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(found[0]), delimiter="\t" if suffix == ".tsv" else ",")
                writer.writeheader()
                writer.writerows(found)
        return path

    return make


def picture_table(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = [{"image": {"bytes": picture("PNG", c), "path": None}, "caption": [f"a {c} one"]} for c in COLOURS]
    pq.write_table(pa.Table.from_pylist(found), folder / "cells.parquet")
    return folder / "cells.parquet"


def folder_of_pictures(folder: Path) -> Path:
    for name in pictures(folder):
        (folder / name).with_suffix(".txt").write_text(f"a {name}\nagain\n", encoding="utf-8")
    return folder


def karpathy(folder: Path) -> Path:
    images = [
        {
            "filename": name,
            "filepath": ".",
            "split": "train",
            "imgid": number,
            "sentids": [number],
            "sentences": [{"raw": f"a {name}", "sentid": number}],
        }
        for number, name in enumerate(pictures(folder))
    ]
    return _json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


def coco(folder: Path) -> Path:
    names = pictures(folder)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    captions = [{"id": n, "image_id": n, "caption": f"a {name}"} for n, name in enumerate(names)]
    return _json(folder / "captions_val2017.json", {"images": images, "annotations": captions})


def flickr(folder: Path) -> Path:
    path = folder / "results.token"
    path.write_text("".join(f"{name}#0\ta {name}\n" for name in pictures(folder)), encoding="utf-8")
    return path


def urban1k(folder: Path) -> Path:
    for part in ("image", "caption"):
        (folder / part).mkdir()
    for name in pictures(folder / "image"):
        (folder / "caption" / name).with_suffix(".txt").write_text(f"a long text on {name}", encoding="utf-8")
    return folder


def docci(folder: Path) -> Path:
    (folder / "images").mkdir()
    lines = [{"split": "train", "image_file": name, "description": f"a {name}"} for name in pictures(folder / "images")]
    path = folder / "docci_descriptions.jsonlines"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def sharegpt4v(folder: Path) -> Path:
    entries = [
        {
            "id": name,
            "image": name,
            "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": f"a {name}"}],
        }
        for name in pictures(folder)
    ]
    return _json(folder / "share.json", entries)


def tar(folder: Path) -> Path:
    members = {}
    for number, colour in enumerate(COLOURS):
        members[f"{number}.png"] = picture("PNG", colour)
        members[f"{number}.txt"] = f"a {colour} one".encode()
        members[f"{number}.json"] = json.dumps({"caption": [colour], "key": str(number)}).encode()
    write_tar(folder / "00000.tar", members)
    return folder / "00000.tar"


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(content), {"comment": "fuzz"}
            file.addfile(info, io.BytesIO(content))


def img2dataset(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tar(folder)
    found = [{"key": str(n), "status": "success", "error_message": None, "caption": c} for n, c in enumerate(COLOURS)]
    pq.write_table(pa.Table.from_pylist(found), folder / "00000.parquet")
    return folder


def huggingface(folder: Path) -> Path:
    import datasets

    cells = [{"bytes": picture("PNG", colour), "path": None} for colour in COLOURS]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    found = datasets.Dataset.from_dict({"image": cells, "caption": list(COLOURS)}, features=features)
    found.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def texts(folder: Path) -> Path:
    (folder / "captions.txt").write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    return folder / "captions.txt"


def eight_lines(folder: Path) -> Path:
    (folder / "lines.txt").write_text("".join(f"name{n}\n" for n in range(8)), encoding="utf-8")
    return folder / "lines.txt"


def words(folder: Path) -> Path:
    (folder / "words.txt").write_text("epochs=3\nlr=1e-3\nobjective.terms={info_nce: 1.0}\n", encoding="utf-8")
    return folder / "words.txt"


def one_picture(kind: str) -> Make:
    def make(folder: Path) -> Path:
        path = folder / f"one.{kind.lower()}"
        if kind in ("SVG", "SVGZ"):
            path.write_bytes(SVG.encode() if kind == "SVG" else gzip.compress(SVG.encode()))
        else:
            path.write_bytes(picture(kind))
        return path

    return make


def features(suffix: str) -> Make:
    def make(folder: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        array, path = _array(8, 4), folder / f"features{suffix}"
        if suffix == ".npy":
            np.save(path, array)
        elif suffix == ".npz":
            np.savez_compressed(path, features=array)
        elif suffix == ".safetensors":
            save_file({"features": torch.from_numpy(array)}, path)
        elif suffix == ".json":
            data = [{"index": n, "embedding": row} for n, row in enumerate(array.tolist())]
            path.write_text(json.dumps({"data": data}))
        elif suffix == ".jsonl":
            words = [base64.b64encode(row.tobytes()).decode() for row in array]
            path.write_text("\n".join(json.dumps({"embeddings": {"base64": [word]}}) for word in words))
        else:
            pq.write_table(pa.table({"features": pa.FixedSizeListArray.from_arrays(array.ravel(), 4)}), path)
        return path

    return make


def pairs() -> PairedFeatures:
    ids = tuple(f"id{i}" for i in range(12))
    owners = torch.arange(12).repeat_interleave(2)
    captions = tuple(f"caption {i}" for i in range(24))
    return PairedFeatures(torch.from_numpy(_array(12, 4)), torch.from_numpy(_array(24, 3)), owners, ids, captions)


def store(folder: Path) -> Path:
    from csaligner.store.store import write_store

    infos = (EncoderInfo("a", "1", "image", 4, {}), EncoderInfo("b", "1", "text", 3, {"max_tokens": 8}))
    write_store(folder / "store", pairs(), infos)
    return folder / "store"


def clip_retrieval(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = folder / "clip"
    for name in ("img_emb", "text_emb", "metadata"):
        (root / name).mkdir(parents=True)
    for number in range(2):
        for name in ("img_emb", "text_emb"):
            np.save(root / name / f"{name}_{number}.npy", _array(5, 4).astype(np.float16))
        columns = {"image_path": [f"{number}{i}.jpg" for i in range(5)], "caption": [f"c{i}" for i in range(5)]}
        pq.write_table(pa.table(columns), root / "metadata" / f"metadata_{number}.parquet")
    return root


def yaml_of(kind: str) -> Make:
    def make(folder: Path) -> Path:
        from csaligner.config import TrainConfig, dump_config

        root = Path(__file__).parents[2] / "recipes"
        if kind == "config":
            text = dump_config(TrainConfig())
        else:
            text = next(iter(sorted((root / kind).glob("*.yaml")))).read_text(encoding="utf-8")
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        return folder / "config.yaml"

    return make


def aligner(folder: Path) -> Path:
    from csaligner.adapters.aligner import Aligner
    from csaligner.config import TrainConfig

    torch.manual_seed(0)
    Aligner.fit_start(pairs(), TrainConfig.model_validate({"dim": 3})).save(folder / "model")
    return folder / "model"


def estimator(folder: Path) -> Path:
    from csaligner.estimator import CSAligner

    mine = CSAligner(epochs=1, batch_size=8, dim=3)
    mine.fit(_array(24, 4), _array(24, 3)).save(folder / "estimator")
    return folder / "estimator"


def run(folder: Path) -> Path:
    """Train briefly, to create all files of a run folder."""
    from csaligner.config import TrainConfig
    from csaligner.pipeline import train
    from csaligner.store.store import Store

    settings = TrainConfig.model_validate({"epochs": 1, "batch_size": 8, "dim": 3})
    train(Store.open(store(folder)), settings, folder / "run")
    return folder / "run"


def index(folder: Path) -> Path:
    from csaligner.search.build import build_index
    from tests.support.colours import ColourImages, ColourTexts, save_aligner

    (folder / "data").mkdir()
    folder_of_pictures(folder / "data")
    mine = save_aligner(folder / "aligner")
    build_index(str(folder / "data"), folder / "index", str(mine), encoders=(ColourImages(), ColourTexts()))
    return folder / "index"


def decoder(folder: Path) -> Path:
    from csaligner.decoders.contract import Contract
    from tests.support.layout import save_tiny_layout

    moments = torch.ones(4)
    contract = Contract("tiny", 4, mean=moments, std=moments, norm=2.0, negative=moments)
    return save_tiny_layout(contract, folder / "decoder")


def encoder(family: str) -> Make:
    def make(folder: Path) -> Path:
        from tests.support.models import MAKERS

        MAKERS[family](folder / family)
        return folder / family

    return make


def _json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def _array(n: int, d: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(n * d).normal(size=(n, d)).astype(np.float32)
