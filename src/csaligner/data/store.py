"""The store: features on disk in clip-retrieval's layout, with a manifest that remembers who made them.

    img_emb/img_emb_0.npy  text_emb/text_emb_0.npy  metadata/metadata_0.parquet  ...  csaligner.json

One row is one (image, caption) pair and rows align by position; an image with several captions stands once for
each. metadata columns: image_id, caption, image_path, split. Features are raw, not normalised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from csaligner.checks import InputError
from csaligner.files import write_atomically
from csaligner.types import SPLITS, EncoderInfo, PairedFeatures, Split

FORMAT_VERSION = 1
MANIFEST = "csaligner.json"
COLUMNS = ("image_id", "caption", "image_path", "split")


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard: image (R, d_image), text (R, d_text), and R entries of each column."""

    image: npt.NDArray[Any]
    text: npt.NDArray[Any]
    image_id: Sequence[str]
    caption: Sequence[str]
    image_path: Sequence[str]
    split: Sequence[str]


def shard_files(number: int) -> tuple[str, str, str]:
    return (
        f"img_emb/img_emb_{number}.npy",
        f"text_emb/text_emb_{number}.npy",
        f"metadata/metadata_{number}.parquet",
    )


def write_shard(folder: Path, number: int, rows: ShardRows) -> dict[str, Any]:
    """Write the three files; returns what the manifest keeps of them: rows and checksums."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_file, text_file, metadata_file = (folder / name for name in shard_files(number))
    for path in (image_file, text_file, metadata_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    _write_array(image_file, rows.image)
    _write_array(text_file, rows.text)
    table = pa.table({name: list(getattr(rows, name)) for name in COLUMNS})
    write_atomically(metadata_file, lambda temporary: pq.write_table(table, temporary))
    hashes = {name: hash_file(folder / name) for name in shard_files(number)}
    return {"rows": len(rows.image_id), "sha256": hashes}


def manifest(
    *,
    dataset: str,
    attribution: str,
    encoders: tuple[EncoderInfo, EncoderInfo],
    dtype: str,
    shards: Sequence[Mapping[str, Any]],
    skipped: Sequence[str] = (),
    plan: str | None = None,
) -> dict[str, Any]:
    """The content of csaligner.json."""
    return {
        "format_version": FORMAT_VERSION,
        "dataset": dataset,
        "attribution": attribution,
        "encoders": {info.modality: asdict(info) for info in encoders},
        "dtype": dtype,
        "normalized": False,
        "shards": list(shards),
        "skipped": list(skipped),
        "plan": plan,
    }


class Store:
    """A finished store, read-only. Open it with Store.open."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self._content = content
        self.encoders = {side: EncoderInfo(**info) for side, info in content["encoders"].items()}
        self.dataset: str = content["dataset"]
        self.attribution: str = content["attribution"]
        self.plan: str | None = content["plan"]

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Raises InputError: no manifest, another format version, a shard that is missing or cut short."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise InputError(f"store: {path} holds no {MANIFEST}; give a folder that `csaligner embed` finished")
        try:
            content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            version = content["format_version"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise InputError(f"store: {path / MANIFEST} is damaged; embed the data again") from None
        if version != FORMAT_VERSION:
            raise InputError(f"store: {path} has format {version}, this csaligner reads {FORMAT_VERSION}")
        store = cls(path, content)
        for number in range(len(content["shards"])):
            store._check_shard(number)
        return store

    @cached_property
    def sha256(self) -> str:
        """Of the manifest, which holds the checksum of every shard."""
        return hash_file(self.path / MANIFEST)

    @property
    def image_fingerprint(self) -> str:
        return self.encoders["image"].fingerprint

    @property
    def text_fingerprint(self) -> str:
        return self.encoders["text"].fingerprint

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the making of the store."""
        skipped = self._content["skipped"]
        return (f"{len(skipped)} skipped: " + "; ".join(skipped[:5]),) if skipped else ()

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """(images, captions) of each split that is there."""
        found: dict[str, tuple[int, int]] = {}
        for split in SPLITS:
            rows = np.asarray(self._columns["split"]) == split
            if rows.any():
                found[split] = (len(set(np.asarray(self._columns["image_id"])[rows])), int(rows.sum()))
        return found

    @property
    def n_images(self) -> int:
        return len(set(self._columns["image_id"]))

    @property
    def n_captions(self) -> int:
        return len(self._columns["image_id"])

    @property
    def image_paths(self) -> dict[str, Path]:
        return {i: Path(p) for i, p in zip(self._columns["image_id"], self._columns["image_path"], strict=True)}

    def require(self, *, image: str | None = None, text: str | None = None) -> None:
        """Refuse features of other encoders: fingerprints that do not match raise InputError."""
        for side, wanted in (("image", image), ("text", text)):
            info = self.encoders[side]
            if wanted is not None and info.fingerprint != wanted:
                raise InputError(
                    f"store: the {side} features in {self.path} were made by {info.id} (fingerprint "
                    f"{info.fingerprint}), wanted those of fingerprint {wanted}; embed with that encoder"
                )

    def features(self, split: Split | None = None) -> PairedFeatures:
        """The pairs of one split, or all; images are stored once. Raises InputError where there are none."""
        keep = [n for n, s in enumerate(self._columns["split"]) if split is None or s == split]
        if not keep:
            raise InputError(f"store: {self.path} has no {split} split; it has: {', '.join(self.counts) or 'nothing'}")
        ids = [self._columns["image_id"][n] for n in keep]
        index = {image_id: n for n, image_id in enumerate(dict.fromkeys(ids))}
        first = {image_id: row for row, image_id in zip(reversed(keep), reversed(ids), strict=True)}
        return PairedFeatures(
            self._rows(0, [first[image_id] for image_id in index]),
            self._rows(1, keep),
            torch.tensor([index[image_id] for image_id in ids]),
            tuple(index),
            tuple(self._columns["caption"][n] for n in keep),
        )

    def verify(self) -> None:
        """Compare every file with its checksum; raises InputError naming the first that differs."""
        for shard in self._content["shards"]:
            for name, wanted in shard["sha256"].items():
                if hash_file(self.path / name) != wanted:
                    raise InputError(f"store: {self.path / name} is damaged (checksum); embed the data again")

    @cached_property
    def _columns(self) -> dict[str, list[str]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        count = len(self._content["shards"])
        tables = [pq.read_table(self.path / shard_files(n)[2], columns=list(COLUMNS)) for n in range(count)]
        return cast(dict[str, list[str]], pa.concat_tables(tables).to_pydict())

    def _rows(self, side: int, rows: Sequence[int]) -> torch.Tensor:
        """Chosen rows of one side in float32, read through memory maps."""
        wanted = np.asarray(rows)
        ends = np.cumsum([shard["rows"] for shard in self._content["shards"]])
        shard_of = np.searchsorted(ends, wanted, side="right")
        result = np.empty((len(wanted), self.encoders[("image", "text")[side]].dim), dtype=np.float32)
        for number in np.unique(shard_of):
            array = np.load(self.path / shard_files(number)[side], mmap_mode="r", allow_pickle=False)
            here = shard_of == number
            result[here] = array[wanted[here] - (ends[number] - len(array))]
        return torch.from_numpy(result)

    def _check_shard(self, number: int) -> None:
        rows = self._content["shards"][number]["rows"]
        dims = (self.encoders["image"].dim, self.encoders["text"].dim)
        for name, dim in zip(shard_files(number)[:2], dims, strict=True):
            try:
                shape = np.load(self.path / name, mmap_mode="r", allow_pickle=False).shape
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"store: {self.path / name} cannot be read ({error}); embed the data again") from None
            if shape != (rows, dim):
                raise InputError(f"store: {self.path / name} has shape {shape}, wanted {(rows, dim)}; embed again")
        if not (self.path / shard_files(number)[2]).is_file():
            raise InputError(f"store: {self.path / shard_files(number)[2]} is missing; embed the data again")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _write_array(path: Path, array: npt.NDArray[Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    write_atomically(path, write)
