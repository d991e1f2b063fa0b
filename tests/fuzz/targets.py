"""Fuzz targets: all readers of untrusted files, as name -> (generator of a valid input, reader)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import valid


@dataclass(frozen=True)
class Target:
    """read: reads the input as a user would; heavy: loads a large library, fewer rounds."""

    make: valid.Make
    read: Callable[[Path], Any]
    heavy: bool = False


def _dataset(name: str, path: Path) -> None:
    from csaligner.datasets import open_dataset
    from csaligner.datasets.clean import clean_items
    from csaligner.datasets.images.load import ImageError, load_image
    from csaligner.datasets.images.source import from_uri, stamp_of, to_uri

    for item in clean_items(open_dataset(str(path), name)).items:
        stamp_of(item.image)
        from_uri(to_uri(item.image))
        with suppress(ImageError):
            load_image(item.image)


def _guessed(path: Path) -> None:
    from csaligner.datasets import open_dataset

    open_dataset(str(path)).items()


def _entries(path: Path) -> None:
    from csaligner.datasets.documents import find_entries

    find_entries(str(path))


def _picture(path: Path) -> None:
    from csaligner.datasets.images.load import load_image

    load_image(path)


def _upload(path: Path) -> None:
    from csaligner.app.pictures import read_upload

    read_upload(path.read_bytes(), 224)


def _features(path: Path) -> None:
    from csaligner.store.import_features import FeatureFiles, import_features

    import_features(FeatureFiles(image=path), path.with_suffix(".store"))


def _lines(path: Path) -> None:
    from csaligner.store.import_features import FeatureFiles, import_features

    image = valid.features(".npy")(path.parent)
    import_features(FeatureFiles(image=image, image_ids=path, captions=path), path.with_suffix(".store"))


def _store(path: Path) -> None:
    from csaligner.store.store import Store

    store = Store.open(path)
    _ = store.notes, store.counts, store.sha256
    for source in store.image_sources.values():
        assert str(source)
    store.features()
    store.verify()


def _foreign_store(path: Path) -> None:
    from csaligner.store.store import Store

    store = Store.open(path)
    _ = store.notes, store.counts, store.image_sources
    store.features()


def _config(path: Path) -> None:
    from csaligner.config import TrainConfig, dump_config, load_config

    dump_config(load_config(TrainConfig, path))


def _words(path: Path) -> None:
    from csaligner.config import TrainConfig, load_config

    load_config(TrainConfig, None, path.read_text(encoding="utf-8", errors="replace").splitlines()[:50])


def _recipe(path: Path) -> None:
    from csaligner.recipes import load_recipe

    load_recipe(path)


def _generation_recipe(path: Path) -> None:
    from csaligner.generation.recipe import load_recipe

    load_recipe(path)


def _aligner(path: Path) -> None:
    import torch

    from csaligner.adapters.aligner import Aligner

    model = Aligner.load(path)
    model.encode_image(torch.ones(2, model.config.dim_image))


def _estimator(path: Path) -> None:
    from csaligner.estimator import CSAligner

    CSAligner.load(path)


def _run(path: Path) -> None:
    from csaligner.pipeline import evaluate_run
    from csaligner.reporting.tables import read_results_json
    from csaligner.run_folder import read_record
    from csaligner.store.store import Store
    from csaligner.training.checkpoint import read_checkpoint

    read_record(path)
    read_checkpoint(path / "checkpoints" / "latest")
    evaluate_run(path, "test", Store.open(path.parent / "store"))
    read_results_json(path / "results.json")


def _goes_on(path: Path) -> None:
    """Resume training in the run folder."""
    from csaligner.config import TrainConfig
    from csaligner.pipeline import train
    from csaligner.store.store import Store

    settings = TrainConfig.model_validate({"epochs": 1, "batch_size": 8, "dim": 3})
    train(Store.open(path.parent / "store"), settings, path)


def _index(path: Path) -> None:
    from csaligner.search.index import Index
    from tests.support.colours import ColourImages, ColourTexts

    index = Index.open(path, (ColourImages(), ColourTexts()))
    _ = index.counts, index.spaces, index.bias
    index.items.stamps()
    index.search("200 30 90", k=5)


def _decoder(path: Path) -> None:
    from csaligner.decoders.decoder import read_contract

    read_contract(str(path))


def _whole_decoder(path: Path) -> None:
    import torch

    from csaligner.decoders.decoder import Sampling, open_decoder

    open_decoder(str(path)).decode(3 * torch.ones(1, 4), Sampling(1, 0, 1, 1.0))


def _encoder(path: Path) -> None:
    from csaligner.encoders import open_encoder

    encoder = open_encoder(str(path), "text")
    encoder.encode([encoder.prepare("a red cat")])


def of_dataset(make: valid.Make, name: str, heavy: bool = False) -> Target:
    return Target(make, partial(_dataset, name), heavy)


TARGETS: Mapping[str, Target] = {
    "csv": of_dataset(valid.table(".csv"), "table"),
    "tsv": of_dataset(valid.table(".tsv"), "table"),
    "jsonl": of_dataset(valid.table(".jsonl"), "table"),
    "parquet table": of_dataset(valid.table(".parquet"), "table"),
    "pictures in parquet": of_dataset(valid.picture_table, "table"),
    "folder": of_dataset(valid.folder_of_pictures, "folder"),
    "karpathy": of_dataset(valid.karpathy, "karpathy"),
    "coco": of_dataset(valid.coco, "coco"),
    "flickr": of_dataset(valid.flickr, "flickr"),
    "urban1k": of_dataset(valid.urban1k, "urban1k"),
    "docci": of_dataset(valid.docci, "docci"),
    "sharegpt4v": of_dataset(valid.sharegpt4v, "sharegpt4v"),
    "webdataset": of_dataset(valid.tar, "webdataset"),
    "img2dataset": of_dataset(valid.img2dataset, "img2dataset"),
    "texts": Target(valid.texts, _guessed),
    "huggingface": of_dataset(valid.huggingface, "huggingface", heavy=True),
    "format of a json": Target(valid.coco, _guessed),
    "index data csv": Target(valid.table(".csv"), _entries),
    "index data jsonl": Target(valid.table(".jsonl"), _entries),
    "index data parquet": Target(valid.table(".parquet"), _entries),
    "index data folder": Target(valid.folder_of_pictures, _entries),
    **{kind.lower(): Target(valid.one_picture(kind), _picture) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP")},
    **{kind.lower(): Target(valid.one_picture(kind), _picture) for kind in ("TIFF", "SVG", "SVGZ")},
    "upload": Target(valid.one_picture("PNG"), _upload),
    **{kind: Target(valid.features(f".{kind}"), _features) for kind in ("npy", "npz", "safetensors", "parquet")},
    **{f"vectors in {kind}": Target(valid.features(f".{kind}"), _features) for kind in ("json", "jsonl")},
    "ids and captions": Target(valid.eight_lines, _lines),
    "store": Target(valid.store, _store),
    "clip-retrieval": Target(valid.clip_retrieval, _foreign_store),
    "config": Target(valid.yaml_of("config"), _config),
    "key=value": Target(valid.words, _words),
    "recipe": Target(valid.yaml_of("retrieval"), _recipe),
    "generation recipe": Target(valid.yaml_of("generation"), _generation_recipe),
    "aligner": Target(valid.aligner, _aligner),
    "estimator": Target(valid.estimator, _estimator),
    "run": Target(valid.run, _run, heavy=True),
    "run that goes on": Target(valid.run, _goes_on, heavy=True),
    "index": Target(valid.index, _index, heavy=True),
    "decoder": Target(valid.decoder, _decoder),
    "whole decoder": Target(valid.decoder, _whole_decoder, heavy=True),
    "text encoder": Target(valid.encoder("bert"), _encoder, heavy=True),
}
