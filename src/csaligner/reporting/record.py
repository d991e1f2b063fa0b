"""What a run hands over to be shown to people. Plain data; nothing here formats or draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from csaligner.checks import InputError, nearest
from csaligner.types import ImageSource, Modality

Array = npt.NDArray[Any]
QueryKind = Literal["text-to-image", "mixed"]


@dataclass(frozen=True)
class MethodResult:
    """One method, one seed. A method without randomness stands once a seed too, with equal values.

    metrics: the names of the conventions (recalls and shares as fractions of 1). intervals: 95 % [low, high]
    of some of them. history: training curves, one mapping a logged step, with "step" and any of "loss/..."
    and "val/...". seconds: training time, None where nothing was trained. split: where it was measured.
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
    """Both modalities in one space, to be drawn: image (n, d), text (m, d), unit rows.

    text_to_image: (m,) the row of `image` that each caption belongs to; None: row i pairs with row i.
    """

    label: str
    image: Array
    text: Array
    text_to_image: Array | None = None


@dataclass(frozen=True)
class CosineSample:
    """Cosines of (image, own caption) and of (image, another image's caption)."""

    paired: Array
    unpaired: Array


@dataclass(frozen=True)
class Hit:
    """One result of a search. thumbnail: an encoded picture or where one lies; None for a text."""

    modality: Modality
    caption: str
    score: float
    correct: bool
    thumbnail: bytes | ImageSource | None = None


@dataclass(frozen=True)
class GalleryQuery:
    """A real query and what each method returned, best first; exactly one of the two query fields is set.

    kind: "text-to-image" searches pictures only; "mixed" searches one index of pictures and texts.
    """

    kind: QueryKind
    results: Mapping[str, Sequence[Hit]]
    query_text: str | None = None
    query_image: bytes | ImageSource | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything that the report shows; whatever is left empty is left out of the page.

    ours: the method the headline speaks about; rival: the method it is compared with, None for a single run.
    maps: one or more, from before to after. Spaces may differ from map to map, also in dimension.
    cosines: by method name. config may be nested. attribution: the line that the pictures' licence asks for.
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


def check_results(results: Sequence[MethodResult]) -> None:
    """At least one result, and each (method, seed) once."""
    if not results:
        raise InputError("results: got none; run at least one method before reporting")
    seen: set[tuple[str, int]] = set()
    for r in results:
        if (r.name, r.seed) in seen:
            raise InputError(f"results: {r.name!r} with seed {r.seed} is there twice; each may stand once")
        seen.add((r.name, r.seed))


def check_report(data: ReportData) -> None:
    """Raises InputError where names do not match or arrays do not fit together."""
    check_results(data.results)
    names = {r.name for r in data.results}
    for role, name in (("ours", data.ours), ("rival", data.rival)):
        if name is not None and name not in names:
            raise InputError(f"{role}: no result is named {name!r}; {nearest(name, names)}")
    for m in data.maps:
        check_map(m)
    for i, q in enumerate(data.gallery):
        if (q.query_text is None) == (q.query_image is None):
            raise InputError(f"gallery query {i}: give query_text or query_image, one of the two")


def check_map(m: FeatureMap) -> None:
    image, text = m.image.shape, m.text.shape
    if len(image) != 2 or len(text) != 2 or image[1] != text[1] or 0 in (*image, *text):
        raise InputError(f"map {m.label!r}: got image {image} and text {text}, wanted (n, d) and (m, d)")
    rows = image[0] if m.text_to_image is None else len(m.text_to_image)
    if rows != text[0]:
        raise InputError(f"map {m.label!r}: text_to_image has {rows} rows for {text[0]} texts")
    if not (np.isfinite(m.image).all() and np.isfinite(m.text).all()):
        raise InputError(f"map {m.label!r}: holds NaN or infinity; leave the map out or fix the features")
