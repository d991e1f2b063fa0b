"""Collection of report data from the aligned test features of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.config import TrainConfig
from csaligner.evaluation.gap import caption_weights
from csaligner.evaluation.ranking import ranks
from csaligner.names import Names
from csaligner.paired_features import first_captions
from csaligner.selection.folds import evenly
from csaligner.store.store import Store
from csaligner.types import ImageSource, Modality, PairedFeatures

from .record import CosineSample, FeatureMap, GalleryQuery, Hit, MethodResult, QueryKind, ReportData, SplitCount

MAP_IMAGES = 400
TOP = 8
CANDIDATES = 500  # queries from which examples are taken, evenly spaced


def report_data(
    store: Store,
    config: TrainConfig,
    results: Sequence[MethodResult],
    aligned: Mapping[str, PairedFeatures],
    about: Mapping[str, object],
) -> ReportData:
    """Collect the report. aligned: method -> aligned test features, the reference method first, ours last. about:
    provenance, `selection`, what was chosen, in one line, and `rejected`, whether training was not kept."""
    before, ours = next(iter(aligned)), list(aligned)[-1]
    versions, commit = about["versions"], about["commit"]
    return ReportData(
        title=f"csaligner on {store.dataset}",
        results=results,
        ours=ours,
        rival=before,
        dataset=store.dataset,
        attribution=store.attribution,
        splits={split: SplitCount(*counts) for split, counts in store.counts.items()},
        maps=[feature_map(method, features) for method, features in aligned.items()],
        cosines={method: _cosines(features) for method, features in aligned.items()},
        gallery=_gallery(store, aligned),
        config=config.model_dump(mode="json"),
        names=Names.of(config.names),
        versions=versions if isinstance(versions, dict) else {},
        seed=results[-1].seed,
        commit=commit if isinstance(commit, str) else None,
        selection=str(about.get("selection", "")),
        rejected=bool(about.get("rejected", False)),
    )


def feature_map(label: str, features: PairedFeatures) -> FeatureMap:
    """Return the first MAP_IMAGES images with one caption each, and the gap of all of them."""
    shown = min(MAP_IMAGES, len(features.image))
    captions = first_captions(features.text_to_image, len(features.image))[:shown]
    image, text = features.image[:shown].numpy(), features.text[captions].numpy()
    return FeatureMap(label, image, text, gap=_centroid_gap(features))


def _centroid_gap(features: PairedFeatures) -> float:
    """Return gap/centroid of evaluation.gap: the distance of the means of unit rows."""
    x, y = normalize(features.image.double(), dim=1), normalize(features.text.double(), dim=1)
    return float((x.mean(dim=0) - caption_weights(features) @ y).norm())


def _cosines(features: PairedFeatures) -> CosineSample:
    owner = features.text_to_image
    paired = (features.image[owner] * features.text).sum(dim=1)
    # captions are compared with the image half the dataset away
    other = (owner + len(features.image) // 2) % len(features.image)
    unpaired = (features.image[other] * features.text).sum(dim=1)
    return CosineSample(paired.numpy(), unpaired[other != owner].numpy())


def _gallery(store: Store, aligned: Mapping[str, PairedFeatures]) -> list[GalleryQuery]:
    """Return example queries, chosen by `changed_queries` on the mixed index of the first and the last method."""
    first, last = next(iter(aligned.values())), list(aligned.values())[-1]
    known = store.image_sources
    if first.captions is None:  # of a sample, whose ids are row numbers
        return []
    if any(i not in known for i in first.image_ids):  # features imported without images
        return []
    paths = [known[i] for i in first.image_ids]
    captions = first.captions or ()
    queries: list[GalleryQuery] = []
    for text in changed_queries(first, last, "text"):
        kinds: tuple[QueryKind, ...] = ("text-to-image", "mixed")
        for kind in kinds:
            hits = {m: _hits_of_text(f, text, paths, mixed=kind == "mixed") for m, f in aligned.items()}
            queries.append(GalleryQuery(kind, hits, query_text=captions[text]))
    for row in changed_queries(first, last, "image", each=1):
        hits = {m: _hits_of_image(f, row, paths) for m, f in aligned.items()}
        queries.append(GalleryQuery("mixed", hits, query_image=paths[row]))
    return queries


def changed_queries(first: PairedFeatures, last: PairedFeatures, modality: Modality, each: int = 2) -> list[int]:
    """Return the queries whose right item of the other modality gains most ranks in the mixed index from `first` to
    `last`, those at the median and those that lose most, `each` of each; at most CANDIDATES queries are compared.

    Changes count as ratios of ranks, so that 20 to 2 weighs as much as 200 to 20; equal changes are in the order of the
    queries.
    """
    rows = evenly(len(first.text if modality == "text" else first.image), CANDIDATES)
    change = mixed_ranks(last, modality, rows).log() - mixed_ranks(first, modality, rows).log()
    order = rows[torch.argsort(change, stable=True)].tolist()
    middle = max(0, len(order) // 2 - each // 2)
    return list(dict.fromkeys([*order[:each], *order[middle : middle + each], *order[-each:]]))


def mixed_ranks(f: PairedFeatures, modality: Modality, rows: Tensor) -> Tensor:
    """Return the rank, from 1, of the best right item of the other modality in the mixed index, for the queries `rows`
    of a modality. Ties as in evaluation.ranking."""
    n = len(f.image)
    points, owner = torch.cat([f.image, f.text]), torch.cat([torch.arange(n), f.text_to_image])
    places = rows + n if modality == "text" else rows
    scores = points[places] @ points.T
    scores[torch.arange(len(places)), places] = -torch.inf
    other = (torch.arange(len(points)) >= n) != (modality == "text")
    return ranks(scores, (owner[places][:, None] == owner) & other).expected()


def _hits_of_text(f: PairedFeatures, text: int, paths: Sequence[ImageSource], *, mixed: bool) -> list[Hit]:
    scores = torch.cat([f.image @ f.text[text], f.text @ f.text[text]])
    scores[len(f.image) + text] = -torch.inf
    if not mixed:
        scores = scores[: len(f.image)]
    return _top(f, scores, int(f.text_to_image[text]), paths)


def _hits_of_image(f: PairedFeatures, row: int, paths: Sequence[ImageSource]) -> list[Hit]:
    scores = torch.cat([f.image @ f.image[row], f.text @ f.image[row]])
    scores[row] = -torch.inf
    return _top(f, scores, row, paths)


def _top(f: PairedFeatures, scores: Tensor, wanted: int, paths: Sequence[ImageSource]) -> list[Hit]:
    hits = []
    captions, n = f.captions or (), len(f.image)
    firsts = first_captions(f.text_to_image, n)
    for index in scores.topk(min(TOP, len(scores) - 1)).indices.tolist():  # excludes the query itself
        score = float(scores[index])
        if index < n:
            hits.append(Hit("image", captions[int(firsts[index])], score, index == wanted, paths[index]))
        else:
            correct = int(f.text_to_image[index - n]) == wanted
            hits.append(Hit("text", captions[index - n], score, correct))
    return hits
