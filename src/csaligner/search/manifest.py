"""index.json: encoders, aligner and sources of an index."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from csaligner.datasets.documents import INDEX_FILE
from csaligner.integrity import ErrorContext, read_sealed, write_sealed
from csaligner.parsing import checked
from csaligner.types import EncoderInfo

from .trust import is_own

FORMAT_VERSION, FUSED_VERSION = 1, 2  # earlier versions of csaligner do not read an index of fused items
OWNER = ErrorContext("index", "delete the folder and index again")


@dataclass(frozen=True)
class Approximate:
    """Settings of an approximate index. kind: LanceDB index type; nprobes: partitions read per query; refine:
    candidates re-scored exactly, as a multiple of k; recall: recall@10 against exact search, measured when it was
    built over `rows` rows."""

    kind: str
    nprobes: int
    refine: int
    recall: float
    rows: int


@dataclass(frozen=True)
class IndexManifest:
    """run: source of the aligner; fingerprint: of its weights; image, text: the encoders; dim: of the aligned vectors;
    raw_dim: of the vectors before alignment, None if not kept; sources: data that was indexed; pending: source whose
    indexing is not finished, or "". photos: whether the index has images that are found through class names
    (adapters/class_names.py). fused: weight of the image in fused items, None: images and captions are separate items
    (search/fused.py). mark, is_own: whether this user made the index on this machine; see search/trust.py."""

    run: str
    fingerprint: str
    image: EncoderInfo
    text: EncoderInfo
    dim: int
    raw_dim: int | None
    sources: tuple[str, ...] = ()
    pending: str = ""
    approximate: Approximate | None = None
    photos: bool = False
    mark: str = ""
    fused: float | None = None

    @property
    def is_own(self) -> bool:
        return is_own(self.mark, self.fingerprint, self.image, self.text)


def write_manifest(folder: Path, manifest: IndexManifest) -> None:
    values = asdict(manifest)
    if manifest.fused is None:
        del values["fused"]
    version = FORMAT_VERSION if manifest.fused is None else FUSED_VERSION
    write_sealed(folder / INDEX_FILE, {"format_version": version} | values)


def read_manifest(folder: Path) -> IndexManifest:
    """Read index.json. Raises InputError if it is missing, damaged or of another format version."""
    parse = partial(checked, IndexManifest)
    versions = (FORMAT_VERSION, FUSED_VERSION)
    return read_sealed(folder / INDEX_FILE, OWNER, parse, made_by="`csaligner index`", version=versions)
