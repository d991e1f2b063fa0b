"""The default on real features against the best untrained baseline, chosen in hindsight on the test pairs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from csaligner.adapters.aligner import align
from csaligner.adapters.start import fit_starts
from csaligner.config import StartConfig
from csaligner.estimator import CSAligner
from csaligner.evaluation.baselines import CanonicalCorrelation, MeanCentring, Procrustes, Standardising
from csaligner.paired_features import pair_features
from csaligner.selection.score import score_per_image
from csaligner.selection.start import apply_starts

DATA = Path(os.environ.get("CSALIGNER_SHARED", Path(__file__).parents[3] / "shared")) / "data"


@pytest.mark.parametrize(
    ("name", "pairs"), [("clip_coco_500", 20), ("clip_coco_500", 100), ("convirt_500", 50), ("videoclip_100", 60)]
)
def test_the_score_is_within_one_standard_error_of_the_best_free_baseline(name: str, pairs: int) -> None:
    if not (DATA / f"{name}.npy").exists():
        pytest.skip(f"{name}.npy is not here; set CSALIGNER_SHARED to the folder that holds data/")
    x, y = np.load(DATA / f"{name}.npy")
    order = np.random.RandomState(300).permutation(len(x))
    held, rows = order[: (len(x) - pairs) // 2], order[-pairs:]
    train, test = (pair_features(x[part], y[part]) for part in (rows, held))
    baselines = (MeanCentring, Standardising, Procrustes, CanonicalCorrelation)
    aligned = [test, *(baseline.fit(train).transform(test) for baseline in baselines)]
    aligned.append(apply_starts(fit_starts(train, StartConfig(kind="moments")), test))
    free = max((score_per_image(features) for features in aligned), key=lambda scores: float(scores.mean()))
    ours = score_per_image(align(CSAligner(verbose=False).fit_features(train).model, test))
    error = float(free.std()) / len(free) ** 0.5
    assert float(ours.mean()) >= float(free.mean()) - error
