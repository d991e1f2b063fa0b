"""A mixed index of pictures and texts that answers both kinds of query without preferring their own."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError, check_choice
from csaligner.datasets.images.source import file_of, from_uri
from csaligner.integrity import check_checksums, open_seal, read_checksums, write_sealed
from csaligner.model import AlignedModel, fingerprint_of
from csaligner.parsing import checked, parse_json
from csaligner.types import Encoder, EncoderInfo, Modality

from .calibration import MODALITIES, Calibration, bias_of
from .lance_table import Items, Row
from .manifest import OWNER, IndexManifest, read_manifest
from .vector_spaces import SPACES, Space, SpaceName, load_space, raw_vectors

ALIGNER, CALIBRATION = "aligner", "calibration.json"
ONLY: Mapping[str, tuple[Modality, ...]] = {"images": ("image",), "texts": ("text",)}
SMALL = 1 << 20  # bytes: larger files are read whole when vectors are loaded, not when the index is opened
REMEMBERED = 1024  # text queries whose features are kept

Query = str | Path | Image.Image
Only = Literal["images", "texts"]


@dataclass(frozen=True)
class Hit:
    """score: comparable over both modalities (see search.calibration), equal to the cosine where there is nothing to
    calibrate by. path: the picture (FILE#COLUMN[ROW] for one inside a parquet table), or the file that the text is
    from; "" for texts of a table. owner: the id of the picture that a text describes. missing: the file is not there
    any more."""

    id: str
    modality: Modality
    score: float
    cosine: float
    path: str
    text: str
    caption: str
    owner: str
    missing: bool


@dataclass(frozen=True)
class SearchOptions:
    """only: one modality; space: aligned, raw or centred; calibrated: aligned scores made comparable;
    approximate: None takes the approximate index where there is one (aligned space only)."""

    only: Only | None = None
    space: SpaceName = "aligned"
    calibrated: bool = True
    approximate: bool | None = None

    def __post_init__(self) -> None:
        check_choice("space", self.space, SPACES)
        if self.only is not None:
            check_choice("only", self.only, ONLY)


class Index:
    """An index folder, open for questions.

        index = Index.open("my-index")
        for hit in index.search("a red apple", k=5):
            print(hit.score, hit.modality, hit.path or hit.text)

    Vectors of a space are read into memory when it is first asked (exact search), unless an approximate index was
    built. Safe to ask from several threads.
    """

    def __init__(
        self,
        path: Path,
        manifest: IndexManifest,
        items: Items,
        model: AlignedModel,
    ) -> None:
        """Use Index.open, or build_index."""
        self.path, self.manifest, self.items, self.model = path, manifest, items, model
        self._spaces: dict[str, Space] = {}
        self._measured: dict[str, Any] | None = None
        self._checked = False
        self._lock = threading.RLock()
        self._text_features = lru_cache(REMEMBERED)(lambda words: model.features_text([words])[0])

    @classmethod
    def open(cls, path: Path | str, encoders: Iterable[Encoder] = ()) -> Index:
        """encoders: to ask with, if not those that the index names; each must have the same fingerprint.

        Raises InputError for a folder that is no index, a damaged one, and an encoder that does not match.
        """
        path = Path(path)
        manifest = read_manifest(path)
        weights = path / ALIGNER / "model.safetensors"
        if not weights.is_file() or fingerprint_of(path / ALIGNER) != manifest.fingerprint:
            raise InputError(f"index: {weights} is not the aligner that made these vectors; {OWNER.advice}")
        infos: dict[Modality, EncoderInfo] = {"image": manifest.image, "text": manifest.text}
        aligner = Aligner.load(path / ALIGNER)
        model = AlignedModel(aligner, encoders, infos=infos, folder=path / ALIGNER, name=f"the index {path}")
        try:
            items = Items.open(path)
        except InputError:
            check_checksums(path, OWNER)  # which file it is
            raise
        index = cls(path, manifest, items, model)
        index.check(up_to=SMALL)
        return index

    def check(self, *, above: int = 0, up_to: int | None = None) -> None:
        """InputError where a file of the tables is gone, or not as it was when the index was finished.

        Sizes of all files are compared, and the SHA-256 of those of `above` < bytes <= `up_to`; nothing while an
        interrupted or another writer has gone on from there.
        """
        listed = read_checksums(self.path, OWNER)
        if listed is not None and listed["version"] == self.items.version:
            check_checksums(self.path, OWNER, above=above, up_to=up_to)

    def __len__(self) -> int:
        return self.items.count()

    @property
    def counts(self) -> dict[Modality, int]:
        return {m: self.items.count(m) for m in MODALITIES}

    @property
    def spaces(self) -> tuple[SpaceName, ...]:
        """What can be asked: raw and centred only where raw vectors are kept and both modalities are there."""
        both = self.manifest.raw_dim is not None and all(self.counts.values())
        return SPACES if both else ("aligned",)

    @property
    def bias(self) -> dict[str, dict[str, float]]:
        """modality_bias@10 by space and modality of the query. aligned: as searched; aligned_cosine: without
        calibration. A sample of the index's own items asks, each with its own row left out."""
        found: dict[str, dict[str, float]] = self._measures()["bias"]
        return found

    def search(self, query: Query, k: int = 10, options: SearchOptions | None = None, **words: Any) -> list[Hit]:
        """The k best items, best first.

        query: words, or a picture (a Path or a PIL image). options: see SearchOptions; its fields may also be given
        as keywords: search("an apple", only="images").
        """
        modality: Modality = "text" if isinstance(query, str) else "image"
        return self.search_features(self.features(query), modality, k, options or SearchOptions(**words))

    def features(self, query: Query) -> Tensor:
        """(d_encoder,), what the encoder says of a query. Raises InputError for empty words and unreadable pictures."""
        if isinstance(query, str):
            words = " ".join(query.split())
            if not words:
                raise InputError("query: is empty; give some words or a picture")
            return self._text_features(words)
        return self.model.features_image([query])[0]

    def search_features(
        self, features: Tensor, modality: Modality, k: int = 10, options: SearchOptions | None = None
    ) -> list[Hit]:
        """As search, for encoder features (d_encoder,) of a query of that modality."""
        if k < 1:
            raise InputError(f"k: got {k}, wanted at least 1")
        options = options or SearchOptions()
        if options.space not in self.spaces:
            raise InputError(
                f"space: {options.space!r} cannot be shown; the index keeps no raw vectors or lacks a modality"
            )
        use = self.manifest.approximate is not None if options.approximate is None else options.approximate
        if use and self.manifest.approximate is None:
            raise InputError("approximate: the index has no approximate index; build one with `--approximate ivf_sq`")
        found: list[tuple[float, float, Modality, int]] = []  # score, cosine, modality, row
        calibration = self.calibration if options.calibrated and options.space == "aligned" else None
        for item in ONLY[options.only] if options.only else MODALITIES:
            rows, cosines = self._nearest(features, modality, item, k, options.space, use)
            scores = calibration.apply(modality, item, cosines) if calibration else cosines
            found += [(*both, item, row) for *both, row in zip(scores.tolist(), cosines.tolist(), rows, strict=True)]
        return self._hits(sorted(found, key=lambda entry: -entry[0])[:k])

    def row(self, item_id: str) -> Row | None:
        """The item of that id, if there is one."""
        return next(iter(self.items.by_id([item_id])), None)

    def space(self, name: SpaceName) -> Space:
        """All its vectors, in memory from then on."""
        with self._lock:
            if name not in self._spaces:
                if not self._checked:
                    self.check(above=SMALL)
                    self._checked = True
                self._spaces[name] = load_space(self.items, name)
            return self._spaces[name]

    @property
    def calibration(self) -> Calibration | None:
        value = self._measures()["calibration"]
        return Calibration.from_json(value) if value else None

    def warm(self) -> None:
        """Load what the first question would load: both encoders, the aligned vectors, the calibration."""
        for modality in MODALITIES:
            self.model.encoder(modality)
        _ = self.calibration
        if self.manifest.approximate is None:
            self.space("aligned")

    def measure(self, *, write: bool) -> None:
        """Calibrate, and measure the biases; `write` is for whoever holds the lock of the folder."""
        vectors = self.space("aligned").vectors
        calibration = Calibration.fit(vectors)
        bias = {"aligned": bias_of(vectors, calibration), "aligned_cosine": bias_of(vectors)}
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
        """After a write: what is in memory is not true any more."""
        with self._lock:
            self._spaces.clear()
            self._measured = None

    def _measures(self) -> dict[str, Any]:
        with self._lock:
            if self._measured is None:
                self._measured = _read_measures(self.path / CALIBRATION, self.items.version)
            if self._measured is None:
                self.measure(write=False)
            assert self._measured is not None
            return self._measured

    def _nearest(
        self, features: Tensor, modality: Modality, item: Modality, k: int, space: SpaceName, approximate: bool
    ) -> tuple[list[int], Tensor]:
        if space != "aligned":
            here = self.space(space)
            raw = raw_vectors(self.model.aligner, modality, features[None])[0]
            return here.nearest(here.place(raw, modality), item, k)
        query = normalize(self.model.align(modality, features[None]), dim=1)[0]
        how = self.manifest.approximate
        if approximate and how is not None:
            return self.items.nearest(query, item, k, nprobes=how.nprobes, refine=how.refine)
        return self.space("aligned").nearest(query, item, k)

    def _hits(self, best: list[tuple[float, float, Modality, int]]) -> list[Hit]:
        rows: dict[tuple[Modality, int], Row] = {}
        for modality in MODALITIES:
            wanted = [row for _, _, m, row in best if m == modality]
            rows |= {(modality, n): row for n, row in zip(wanted, self.items.by_row(modality, wanted), strict=True)}
        return [_hit(rows[m, n], score, cosine) for score, cosine, m, n in best]


def _read_measures(path: Path, version: list[int]) -> dict[str, Any] | None:
    """What was measured on this very version of the tables, if it was."""
    try:
        value = open_seal(path, parse_json(path.read_text(encoding="utf-8")), OWNER)
        if value["version"] != version:
            return None
        if value["calibration"] is not None:
            Calibration.from_json(value["calibration"])
        return value | {"bias": {space: checked(dict[str, float], found) for space, found in value["bias"].items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _hit(row: Row, score: float, cosine: float) -> Hit:
    missing = bool(row.path) and not file_of(from_uri(row.path)).exists()
    return Hit(row.id, row.modality, score, cosine, row.path, row.text, row.caption, row.owner, missing)
