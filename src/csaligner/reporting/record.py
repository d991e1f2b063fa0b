"""Data classes of a report: results, maps, cosines, gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from csaligner.checks import InputError, nearest
from csaligner.names import Names
from csaligner.types import ImageSource, Modality

Array = npt.NDArray[Any]
QueryKind = Literal["text-to-image", "mixed"]


@dataclass(frozen=True)
class MethodResult:
    """Result of one method with one seed. Deterministic methods repeat their values for each seed.

    metrics: name -> value (recalls and fractions in 0 to 1). intervals: 95 % [low, high] of some metrics. history:
    training curves, one mapping per logged step, with "step" and any of "loss/..." and "val/...". seconds: training
    time, None if nothing was trained. split: the evaluated split.
    """

    name: str
    seed: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    seconds: float | None = None
    split: str = "test"


@dataclass(frozen=True)
class SplitCount:
    n_images: int
    n_captions: int


@dataclass(frozen=True)
class FeatureMap:
    """Features of both modalities for a map: image (n, d), text (m, d), unit rows.

    text_to_image: (m,) row of `image` of each caption; None: row i matches row i. gap: distance of the centroids of all
    features, of which these may be a part; None: of these.
    """

    label: str
    image: Array
    text: Array
    text_to_image: Array | None = None
    gap: float | None = None


@dataclass(frozen=True)
class CosineSample:
    """Cosines of pairs (image, its caption) and of non-pairs (image, caption of another image)."""

    paired: Array
    unpaired: Array


@dataclass(frozen=True)
class Hit:
    """One result of a search. thumbnail: an encoded image or its source; None for a text."""

    modality: Modality
    caption: str
    score: float
    correct: bool
    thumbnail: bytes | ImageSource | None = None


@dataclass(frozen=True)
class GalleryQuery:
    """An example query and the results of each method, best first; exactly one of the two query fields is set.

    kind: "text-to-image" searches images only; "mixed" searches one index of images and texts.
    """

    kind: QueryKind
    results: Mapping[str, Sequence[Hit]]
    query_text: str | None = None
    query_image: bytes | ImageSource | None = None


@dataclass(frozen=True)
class ReportData:
    """Contents of the report; empty fields are omitted from the page.

    ours: the method of the headline; rival: the baseline it is compared with, None for a single run.
    maps: in order, from before to after training; dimensions may differ. cosines: method -> sample. config: may be
    nested. attribution: credit line required by the licence of the images. selection: what was chosen, in one line.
    rejected: training was not kept, so `ours` is the untrained `rival`. findings: sentences that replace the headline,
    the most important first. more: further tables, by heading. names: of the two spaces.
    """

    title: str
    results: Sequence[MethodResult]
    ours: str = "CS-Aligner"
    rival: str | None = "InfoNCE"
    dataset: str = ""
    attribution: str = ""
    splits: Mapping[str, SplitCount] = field(default_factory=dict)
    maps: Sequence[FeatureMap] = ()
    cosines: Mapping[str, CosineSample] = field(default_factory=dict)
    gallery: Sequence[GalleryQuery] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    commit: str | None = None
    selection: str = ""
    rejected: bool = False
    findings: Sequence[str] = ()
    more: Mapping[str, Sequence[MethodResult]] = field(default_factory=dict)
    names: Names = field(default_factory=Names)

    def told(self, findings: Sequence[str], more: Mapping[str, Sequence[MethodResult]]) -> ReportData:
        """Return the report with these findings and further tables."""
        return replace(self, findings=findings, more=more)


def check_results(results: Sequence[MethodResult]) -> None:
    """Raise InputError without results, or for a duplicate (method, seed)."""
    if not results:
        raise InputError("results: got none, wanted at least one")
    seen: set[tuple[str, int]] = set()
    for r in results:
        if (r.name, r.seed) in seen:
            raise InputError(f"results: {r.name!r} with seed {r.seed} occurs twice; give each method and seed once")
        seen.add((r.name, r.seed))


def check_report(data: ReportData) -> None:
    """Raise InputError if method names or array shapes do not match."""
    check_results(data.results)
    names = {r.name for r in data.results}
    for role, name in (("ours", data.ours), ("rival", data.rival)):
        if name is not None and name not in names:
            raise InputError(f"{role}: no result is named {name!r}; {nearest(name, names)}")
    for m in data.maps:
        check_map(m)
    for i, q in enumerate(data.gallery):
        if (q.query_text is None) == (q.query_image is None):
            raise InputError(f"gallery query {i}: give either query_text or query_image")


def check_map(m: FeatureMap) -> None:
    image, text = m.image.shape, m.text.shape
    if len(image) != 2 or len(text) != 2 or image[1] != text[1] or 0 in (*image, *text):
        raise InputError(f"map {m.label!r}: got image {image} and text {text}, wanted (n, d) and (m, d)")
    rows = image[0] if m.text_to_image is None else len(m.text_to_image)
    if rows != text[0]:
        raise InputError(f"map {m.label!r}: got {rows} rows of text_to_image, wanted {text[0]}")
    if not (np.isfinite(m.image).all() and np.isfinite(m.text).all()):
        raise InputError(f"map {m.label!r}: contains NaN or infinity; remove the map or fix the features")
