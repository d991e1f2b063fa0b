"""Reader of img2dataset output, tars or folders: 00000.tar or 00000/, each with 00000.parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from csaligner.checks import InputError
from csaligner.datasets.images.load import SUFFIXES
from csaligner.parquet import open_parquet
from csaligner.types import Item

from .records import BadRecord, captions, items_of
from .tars import Sample, captions_of, samples_of
from .text_files import NotText, decoded

COLUMNS = ("key", "status", "error_message", "caption")


class Img2Dataset:
    """The downloads with status `success`; failed downloads are skipped and counted in `notes`.

    The caption is the table's `caption`, else the .txt or .json file of the same key. A shard without a table (an
    interrupted download) is read completely. The image id is the key.
    """

    attribution = ""

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._failed: Counter[str] = Counter()
        self._shards = sorted(shard_names(self._path)) if self._path.is_dir() else []
        if not self._shards:
            raise InputError(f"{self._path}: holds no 00000.tar or 00000/ of img2dataset")

    @property
    def name(self) -> str:
        return self._path.resolve().name

    @property
    def notes(self) -> tuple[str, ...]:
        """One line about the downloads that items() skipped, if any."""
        if not self._failed:
            return ()
        reasons = ", ".join(f"{reason} ({n})" for reason, n in self._failed.most_common(3))
        return (f"failed downloads, skipped: {sum(self._failed.values())}; most often: {reasons}",)

    def items(self) -> Sequence[Item]:
        self._failed.clear()
        return [item for shard in self._shards for item in self._of(shard)]

    def _of(self, shard: str) -> list[Item]:
        tar, table = self._path / f"{shard}.tar", self._path / f"{shard}.parquet"
        samples = samples_of(tar) if tar.is_file() else _files(self._path / shard)
        rows = self._rows(table) if table.is_file() else {}

        def make(key: str) -> Item:
            sample, row = samples.get(key, Sample()), rows.get(key, {})
            if sample.broken or sample.image is None:
                raise BadRecord(sample.broken or "has no image, though its status is success")
            found = row.get("caption")
            return Item(key, sample.image, captions_of(sample) if found is None else captions(found), group=key)

        broken = [key for key, sample in samples.items() if sample.broken and key not in rows]
        keys = [*rows, *broken] if table.is_file() else list(samples)
        return items_of(tar if tar.is_file() else self._path / shard, ((key, key) for key in keys), make)

    def _rows(self, table: Path) -> dict[str, dict[str, Any]]:
        """Return key -> row of the successful downloads."""
        found = {}
        for row in _read(table):
            if row.get("status", "success") == "success":
                found[str(row["key"])] = row
            else:
                self._failed[str(row.get("error_message") or row["status"])[:60]] += 1
        return found


def shard_names(folder: Path) -> Iterator[str]:
    """Yield the shard names 00000, 00001, ... of the tars and folders in `folder`."""
    for path in folder.iterdir():
        stem = path.name.removesuffix(".tar")
        if stem.isdigit() and (path.is_dir() or path.name.endswith(".tar")):
            yield stem


def _files(folder: Path) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            sample = samples.setdefault(path.stem, Sample())
            sample.image = sample.image or path
        elif suffix == ".txt":
            sample = samples.setdefault(path.stem, Sample())
            try:
                sample.text = decoded(path.read_bytes())
            except NotText as error:
                sample.broken = f"{path.name} {error}"
    return samples


def _read(table: Path) -> list[dict[str, Any]]:
    try:
        with open_parquet(table) as file:
            names = [name for name in COLUMNS if name in file.names]
            if "key" not in names:
                raise InputError(f"{table}: has no column 'key'; is it a table of img2dataset?")
            return file.read(names).to_pylist()  # type: ignore[no-any-return]
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{table}: does not read as parquet ({error})") from None
