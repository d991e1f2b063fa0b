"""The score that ranks alignments, and other metrics computed from metrics."""

from __future__ import annotations

from collections.abc import Mapping

KS = (1, 5, 10)
MEAN_RECALL, MEAN_NDCG, SCORE = "mean_recall@1", "mean_mixed_ndcg@10", "alignment_score"
MARGIN = "gap/pair_margin"

# name -> the two metrics it is the mean of
MEANS: Mapping[str, tuple[str, str]] = {
    **{f"mean_recall@{k}": (f"image_to_text_recall@{k}", f"text_to_image_recall@{k}") for k in KS},
    MEAN_NDCG: ("mixed_ndcg@10", "mixed_ndcg@10/image_query"),
    "mean_mixed_recall@10": ("mixed_image_recall@10", "mixed_text_recall@10"),
    SCORE: (MEAN_RECALL, MEAN_NDCG),
}


def derived_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the derived metrics whose parts are in `metrics`; results of earlier versions have the parts only.

    mean_recall@K: mean of both directions. mean_mixed_ndcg@10: mean over caption queries and image queries (the mean
    of two means). mean_mixed_recall@10: the same of mixed_image_recall@10 and mixed_text_recall@10. alignment_score:
    (mean_recall@1 + mean_mixed_ndcg@10) / 2, the score that ranks; shown in points, 100 times the value.
    gap/pair_margin: gap/paired_cosine - gap/unpaired_cosine.
    """
    found: dict[str, float] = {}
    for name, parts in MEANS.items():
        values = [found.get(part, metrics.get(part)) for part in parts]
        if values[0] is not None and values[1] is not None:
            found[name] = (values[0] + values[1]) / 2
    paired, unpaired = metrics.get("gap/paired_cosine"), metrics.get("gap/unpaired_cosine")
    if paired is not None and unpaired is not None:
        found[MARGIN] = paired - unpaired
    return found
