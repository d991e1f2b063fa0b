"""Detection of a dataset's format from its path."""

from __future__ import annotations

from pathlib import Path

from csaligner.checks import InputError
from csaligner.datasets.images.load import SUFFIXES

from .caption_files import has_caption_file
from .docci import FILE as DOCCI_FILE
from .img2dataset import shard_names
from .table import TABLE_SUFFIXES, shards_of
from .tars import COMPRESSED

FEATURES = {".npy", ".npz", ".safetensors"}
ARCHIVES = frozenset({".zip", ".7z", ".rar", ".gz", ".xz", ".bz2", ".zst"})
HEAD = 1 << 16  # characters of a JSON file that are inspected


def format_of(path: Path) -> str:
    """Return the name of a reader in registry.DATASETS. Raises InputError if the format cannot be identified."""
    if path.is_dir():
        return _of_folder(path)
    suffix = path.suffix.lower()
    if path.name == DOCCI_FILE:
        return "docci"
    if suffix in TABLE_SUFFIXES:
        return "table"
    if suffix == ".json":
        return _of_json(path)
    simple = {".token": "flickr", ".tar": "webdataset", ".txt": "texts"}
    if suffix in simple:
        return simple[suffix]
    if path.name.lower().endswith(COMPRESSED):
        return "webdataset"
    if suffix in SUFFIXES:
        raise InputError(f"dataset: {path} is one image; give its folder")
    if suffix in ARCHIVES:
        raise InputError(f"dataset: {path} is an archive; unpack it and give the folder")
    if suffix in FEATURES:
        raise InputError(
            f"dataset: {path} holds features; make a store of them with `csaligner import`, then train on it"
        )
    what = suffix or "a file without suffix"
    raise InputError(f"dataset: {path}: unknown format ({what}); give --data-format (table reads any delimited text)")


def _of_folder(path: Path) -> str:
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        return "huggingface"
    if (path / DOCCI_FILE).is_file():
        return "docci"
    if (path / "img_emb").is_dir() or (path / "text_emb").is_dir():
        raise InputError(f"dataset: {path} holds features, not images; it is already a store: pass it to train")
    names = set(shard_names(path))
    if any((path / f"{name}.parquet").is_file() for name in names):
        return "img2dataset"
    if any(path.glob("*.tar")):
        return "webdataset"
    if (path / "image").is_dir() and (path / "caption").is_dir():
        return "urban1k"
    if shards_of(path) and not _holds_images(path):
        return "table"
    return "captioned" if has_caption_file(path) else "folder"


def _holds_images(path: Path) -> bool:
    """Return whether images lie in the folder or in one directly below."""
    return any(p.suffix.lower() in SUFFIXES for p in (*path.glob("*.*"), *path.glob("*/*.*")))


def _of_json(path: Path) -> str:
    """Identify a JSON format by keys near the start of the file."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.read(HEAD)
    if head.lstrip().startswith("["):
        found = [("sharegpt4v", '"conversations"'), ("table", "{")]
    else:
        found = [
            ("karpathy", '"sentences"'),
            ("coco", '"annotations"'),
            ("coco", '"coco_url"'),
            ("coco", '"file_name"'),
        ]
    for name, word in found:
        if word in head:
            return name
    raise InputError(f"dataset: {path}: unknown JSON format; give --data-format")
