"""Search in a mixed index of images and texts, by text or by image, with scores comparable across modalities."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.adapters.class_names import PHOTO_NOTE
from csaligner.adapters.fusion import fuse
from csaligner.checks import InputError, check_choice
from csaligner.datasets.documents import INDEX_FILE
from csaligner.datasets.images.source import file_of, from_uri
from csaligner.integrity import check_checksums, read_checksums, write_sealed
from csaligner.model import AlignedModel, fingerprint_of
from csaligner.remote import copy_of
from csaligner.types import Encoder, EncoderInfo, Modality
from csaligner.urls import is_url

from .calibration import MODALITIES, Calibration, bias_of, read_measures
from .lance_table import FUSED, PARTS, READ_DIRECTLY, ItemKind, Items, Row, is_table
from .manifest import OWNER, IndexManifest, read_manifest
from .memory_ivf import KIND, MemoryIVF, open_lists
from .query import Encoded, FusedQuery, Query
from .vector_spaces import SPACES, Space, SpaceName, load_space, raw_vectors

ALIGNER, CALIBRATION = "aligner", "calibration.json"
ONLY: Mapping[str, tuple[ItemKind, ...]] = {"images": ("image", "fused"), "texts": ("text",)}
SMALL = 1 << 20  # bytes: checksums of larger files are verified when vectors are loaded, not when the index is opened
NONE = torch.empty(0, dtype=torch.int64)
CACHED = 1024  # text queries with cached features

Found = tuple[float, float, ItemKind, int]  # score, cosine, kind and row of an item
Only = Literal["images", "texts"]


@dataclass(frozen=True)
class Hit:
    """score: comparable across modalities (see search.calibration); equal to the cosine without calibration. path: the
    image file (FILE#COLUMN[ROW] for an image in a parquet table) or the file of the text; "" for texts of a table.
    owner: id of the image that a text describes. missing: the file no longer exists. fused: the vector is that of the
    image and its captions, which are the text, one per line."""

    id: str
    modality: Modality
    score: float
    cosine: float
    path: str
    text: str
    caption: str
    owner: str
    missing: bool
    fused: bool = False


@dataclass(frozen=True)
class SearchOptions:
    """only: restrict results to one modality; space: aligned, raw or centred; calibrated: calibrate scores (aligned
    space only); approximate: use the approximate index (aligned space only), None: if there is one."""

    only: Only | None = None
    space: SpaceName = "aligned"
    calibrated: bool = True
    approximate: bool | None = None

    def __post_init__(self) -> None:
        check_choice("space", self.space, SPACES)
        if self.only is not None:
            check_choice("only", self.only, ONLY)


class Index:
    """An open index folder.

        index = Index.open("my-index")
        for hit in index.search("a red apple", k=5):
            print(hit.score, hit.modality, hit.path or hit.text)

    For exact search, the vectors of a space are read into memory on first use. Searching is thread-safe.
    """

    def __init__(
        self,
        path: Path,
        manifest: IndexManifest,
        items: Items,
        model: AlignedModel,
    ) -> None:
        """Use Index.open or build_index."""
        self.path, self.manifest, self.items, self.model = path, manifest, items, model
        self._spaces: dict[str, Space] = {}
        self._measured: dict[str, Any] | None = None
        self._parsed: tuple[Any, Calibration | None] | None = None  # the calibration in _measured, and what it says
        self._opened_lists: list[dict[str, MemoryIVF] | None] = []
        self._checked = self.consent = False
        self._lock = threading.RLock()
        self._text_features = lru_cache(CACHED)(lambda text: model.features_text([text])[0])

    @classmethod
    def open(cls, path: Path | str, encoders: Iterable[Encoder] = (), *, trust: bool = False) -> Index:
        """Open an index folder, or the folder of `csaligner quickstart` that contains one.

        path: a folder, or the URL of an index on object storage: LanceDB reads the tables of s3:// where they are, and
        the other files are copied into the cache (see remote.py); such an index is only read.
        encoders: query encoders instead of those recorded in the index; fingerprints must match. trust: consent to what
        an index that this user did not make on this machine names: images to show, encoders to download.

        Raises InputError for a folder that is not an index, a damaged index, and an encoder that does not match.
        """
        url = str(path) if is_url(path) else None
        if url is not None:
            direct = url.startswith(READ_DIRECTLY)
            path = copy_of(url, INDEX_FILE, skip=is_table if direct else lambda name: False)
            url = url if direct else None
        path = Path(path)
        if not (path / INDEX_FILE).exists() and (path / "index" / INDEX_FILE).exists():
            path = path / "index"
        manifest = read_manifest(path)
        weights = path / ALIGNER / "model.safetensors"
        if not weights.is_file() or fingerprint_of(path / ALIGNER) != manifest.fingerprint:
            raise InputError(f"index: {weights} is missing or not the aligner of these vectors; {OWNER.advice}")
        infos: dict[Modality, EncoderInfo] = {"image": manifest.image, "text": manifest.text}
        aligner = Aligner.load(path / ALIGNER)
        own, name = trust or manifest.is_own, f"the index {path}"
        model = AlignedModel(aligner, encoders, infos=infos, folder=path / ALIGNER, name=name, downloads=own)
        try:
            items = Items.open(path) if url is None else Items.open_url(path, url, fused=manifest.fused is not None)
        except InputError:
            if url is None:
                check_checksums(path, OWNER)  # names the damaged file
            raise
        index = cls(path, manifest, items, model)
        index.consent = trust
        index.check(up_to=SMALL)
        return index

    @property
    def trusted(self) -> bool:
        """Whether the index may choose which images to show: its user made it on this machine, or gave consent."""
        return self.consent or self.manifest.is_own

    def check(self, *, above: int = 0, up_to: int | None = None) -> None:
        """Raise InputError if a table file is missing or has changed since the index was finished.

        Compares the sizes of all files, and the SHA-256 of files with `above` < bytes <= `up_to`. Does nothing if the
        tables were written to since then (interrupted or concurrent update).
        """
        listed = read_checksums(self.path, OWNER)
        if listed is not None and listed["version"] == self.items.version:
            skip = is_table if self.items.is_remote else lambda name: False
            check_checksums(self.path, OWNER, above=above, up_to=up_to, skip=skip)

    def __len__(self) -> int:
        return self.items.count()

    @property
    def counts(self) -> dict[Modality, int]:
        """Numbers of images, fused ones included, and texts."""
        return {"image": self.items.count("image") + self.items.count(FUSED), "text": self.items.count("text")}

    def kinds(self, only: str | None = None) -> tuple[ItemKind, ...]:
        """Return the kinds of items, all or those of a restriction."""
        return tuple(kind for kind in self.items.kinds if only is None or kind in ONLY[only])

    @property
    def parts(self) -> dict[Modality, Tensor] | None:
        """Aligned vectors (N, dim) of the images and of the captions of all fused items, in the order of the space."""
        if FUSED not in self.items.kinds:
            return None
        return {m: self.items.matrix(FUSED, PARTS[m]).vectors for m in MODALITIES}

    @property
    def spaces(self) -> tuple[SpaceName, ...]:
        """Spaces that can be searched; raw and centred require raw vectors and items of both modalities."""
        both = self.manifest.raw_dim is not None and all(self.counts.values())
        return SPACES if both else ("aligned",)

    @property
    def bias(self) -> dict[str, dict[str, float]]:
        """modality_bias@10 by space and query modality. aligned: with calibration; aligned_cosine: without. Queries
        are a sample of the items of the index, each excluded from its candidates."""
        found: dict[str, dict[str, float]] = self._measures()["bias"]
        return found

    def search(self, query: Query, k: int = 10, options: SearchOptions | None = None, **words: Any) -> list[Hit]:
        """Return the k best items, best first.

        query: a text (str), an image (Path or PIL image) or both (FusedQuery). options: see SearchOptions; its fields
        are also accepted as keyword arguments: search("an apple", only="images").
        """
        return self.search_encoded(self.encode(query), k, options or SearchOptions(**words))

    def encode(self, query: Query) -> Encoded:
        """Encode a query. Raises InputError for an empty text or an unreadable image."""
        if isinstance(query, FusedQuery):
            both: dict[Modality, Tensor] = {"image": self.features(query.image), "text": self.features(query.text)}
            return Encoded(both, query.image_weight)
        return Encoded({"text" if isinstance(query, str) else "image": self.features(query)})

    def encode_all(self, queries: Sequence[Query]) -> list[Encoded]:
        """Return `encode` of each query, equal up to rounding."""
        texts = [n for n, query in enumerate(queries) if isinstance(query, str)]
        rows = self.model.features_text([_words(str(queries[n])) for n in texts])
        known: dict[int, Encoded] = {n: Encoded({"text": row}) for n, row in zip(texts, rows, strict=True)}
        return [known[n] if n in known else self.encode(query) for n, query in enumerate(queries)]

    def features(self, query: str | Path | Image.Image) -> Tensor:
        """Encode a query to features (d_encoder,). Raises InputError for an empty text or an unreadable image."""
        if isinstance(query, str):
            return self._text_features(_words(query))
        return self.model.features_image([query])[0]

    def search_features(
        self, features: Tensor, modality: Modality, k: int = 10, options: SearchOptions | None = None
    ) -> list[Hit]:
        """Search by encoder features (d_encoder,) of a query of the given modality."""
        return self.search_encoded(Encoded({modality: features}), k, options)

    def search_encoded(self, query: Encoded, k: int = 10, options: SearchOptions | None = None) -> list[Hit]:
        """Search by an encoded query."""
        if k < 1:
            raise InputError(f"k: got {k}, wanted at least 1")
        return self._hits(self._best([query], k, options or SearchOptions())[0])

    def search_many(
        self, queries: Sequence[Query], k: int = 10, options: SearchOptions | None = None, **words: Any
    ) -> list[list[Hit]]:
        """Return `search` of each query. Texts are encoded together and all queries are compared at once, so that it
        is several times faster than a search for each."""
        if k < 1:
            raise InputError(f"k: got {k}, wanted at least 1")
        return [self._hits(best) for best in self._best(self.encode_all(queries), k, options or SearchOptions(**words))]

    def best_scores(self, queries: Iterable[Encoded], options: SearchOptions | None = None) -> list[float]:
        """Return the score of the best item for each of Q queries; fewer for an empty index. Items are not read, so
        that it is faster than a search for each."""
        return [best[0][0] for best in self._best(list(queries), 1, options or SearchOptions()) if best]

    def _best(self, queries: Sequence[Encoded], k: int, options: SearchOptions) -> list[list[Found]]:
        """Return the k best items of each query, best first."""
        if options.space not in self.spaces:
            raise InputError(
                f"space: got {options.space!r}, but this index has {', '.join(self.spaces)}; choose one of them"
            )
        use = self.manifest.approximate is not None if options.approximate is None else options.approximate
        if use and self.manifest.approximate is None:
            raise InputError("approximate: the index has no approximate index; build one with `--approximate ivf_sq`")
        if not queries:
            return []
        vectors = torch.stack([self._vector(query, options.space) for query in queries])
        calibration = self.calibration if options.calibrated and options.space == "aligned" else None
        found: list[list[Found]] = [[] for _ in queries]
        for item in self.kinds(options.only):
            nearest = self._nearest(vectors, item, k, options.space, use)
            for entries, query, (rows, cosines) in zip(found, queries, nearest, strict=True):
                scores = calibration.apply_shares(query.shares, item, cosines) if calibration else cosines
                both = zip(scores.tolist(), cosines.tolist(), rows, strict=True)
                entries += [(score, cosine, item, row) for score, cosine, row in both]
        return [sorted(entries, key=lambda entry: -entry[0])[:k] for entries in found]

    def row(self, item_id: str) -> Row | None:
        """Return the item with this id, or None."""
        return next(iter(self.items.by_id([item_id])), None)

    def space(self, name: SpaceName) -> Space:
        """Return all vectors of a space; they are kept in memory."""
        with self._lock:
            if name not in self._spaces:
                if not self._checked:
                    self.check(above=SMALL)
                    self._checked = True
                self._spaces[name] = load_space(self.items, name)
            return self._spaces[name]

    @property
    def calibration(self) -> Calibration | None:
        with self._lock:
            value = self._measures()["calibration"]
            if self._parsed is None or self._parsed[0] is not value:
                self._parsed = value, Calibration.from_json(value) if value else None
            return self._parsed[1]

    @property
    def note(self) -> str:
        """What to know about its results, in one line: how photos are found if class names find them, else ""."""
        return PHOTO_NOTE if self.manifest.photos else ""

    def warm(self, modality: Modality | None = None) -> None:
        """Load everything that the first query of a modality needs, or of both, texts first: its encoder, the
        calibration, the aligned vectors."""
        for each in MODALITIES[::-1] if modality is None else (modality,):
            self.model.encoder(each)
            _ = self.calibration
            how = self.manifest.approximate
            if how is None or how.kind == KIND:
                self._lists()
                self.space("aligned")

    def measure(self, *, write: bool) -> None:
        """Calibrate and measure biases. write: save to calibration.json; requires the lock of the folder."""
        vectors, parts = self.space("aligned").vectors, self.parts
        calibration = Calibration.fit(vectors, parts)
        bias = {"aligned": bias_of(vectors, calibration, parts), "aligned_cosine": bias_of(vectors, None, parts)}
        for name in self.spaces[1:]:
            bias[name] = bias_of(load_space(self.items, name).vectors)
        self._measured = {
            "version": self.items.version,
            "calibration": calibration.to_json() if calibration else None,
            "bias": bias,
        }
        if write:
            write_sealed(self.path / CALIBRATION, self._measured)

    def forget(self) -> None:
        """Clear vectors and measurements in memory, after a write."""
        with self._lock:
            self._spaces.clear()
            self._opened_lists.clear()
            self._measured = None

    def _measures(self) -> dict[str, Any]:
        with self._lock:
            if self._measured is None:
                self._measured = read_measures(self.path / CALIBRATION, self.items.version)
            if self._measured is None:
                self.measure(write=False)
            assert self._measured is not None
            return self._measured

    def _vector(self, query: Encoded, space: SpaceName) -> Tensor:
        """Return the unit vector (d,) of a query in a space."""
        placed = {m: self._placed(query.features[m], m, space) for m in query.shares}
        if len(placed) > 1:
            return fuse(placed["image"], placed["text"], query.image_weight)
        return next(iter(placed.values()))

    def _placed(self, features: Tensor, modality: Modality, space: SpaceName) -> Tensor:
        """Map encoder features of a query (d_encoder,) to its unit vector in a space."""
        if space == "aligned":
            return normalize(self.model.align(modality, features[None]), dim=1)[0]
        raw = raw_vectors(self.model.aligner, modality, features[None])[0]
        return self.space(space).place(raw, modality)

    def _nearest(
        self, queries: Tensor, item: ItemKind, k: int, space: SpaceName, approximate: bool
    ) -> list[tuple[list[int], Tensor]]:
        how = self.manifest.approximate
        if space == "aligned" and approximate and how is not None and (how.kind != KIND or self._lists() is not None):
            return self.nearest(queries, item, k, nprobes=how.nprobes, refine=how.refine)
        if len(queries) == 1:
            return [self.space(space).nearest(queries[0], item, k)]
        return self.space(space).nearest_all(queries, item, k)

    def nearest(
        self, queries: Tensor, item: ItemKind, k: int, *, nprobes: int, refine: int
    ) -> list[tuple[list[int], Tensor]]:
        """Return row ids and cosines of the k nearest items for unit vectors (Q, d), from the approximate index."""
        lists = self._lists()
        if lists is None:
            return [self.items.nearest(query, item, k, nprobes=nprobes, refine=refine) for query in queries]
        found = lists[item].candidates(queries, k * refine, nprobes) if item in lists else [NONE] * len(queries)
        return self.space("aligned").nearest_of(queries, item, k, found)

    def _lists(self) -> dict[str, MemoryIVF] | None:
        """Return the lists of faiss, read once; None if there are none for the tables as they are."""
        with self._lock:
            if not self._opened_lists:
                self._opened_lists = [open_lists(self.path, self.items.version)]
            return self._opened_lists[0]

    def _hits(self, best: list[Found]) -> list[Hit]:
        rows: dict[tuple[ItemKind, int], Row] = {}
        for kind in self.items.kinds:
            wanted = [row for _, _, k, row in best if k == kind]
            rows |= {(kind, n): row for n, row in zip(wanted, self.items.by_row(kind, wanted), strict=True)}
        return [_hit(rows[m, n], score, cosine) for score, cosine, m, n in best]


def _words(text: str) -> str:
    """Return a text query with single spaces. Raises InputError if it is empty."""
    words = " ".join(text.split())
    if not words:
        raise InputError("query: is empty; give a text or an image")
    return words


def _hit(row: Row, score: float, cosine: float) -> Hit:
    missing = bool(row.path) and not file_of(from_uri(row.path)).exists()
    fused = row.kind == FUSED
    return Hit(row.id, row.modality, score, cosine, row.path, row.text, row.caption, row.owner, missing, fused)
