"""Effect of unpaired images and texts on retrieval with few pairs.

    CSALIGNER_SHARED=PATH python benchmarks/unpaired.py --out benchmarks/results/unpaired.json

The data and splits of benchmarks/defaults.py, both modalities adapted; N pairs, and unpaired images and texts from
disjoint other items. The default (start and gate) on pairs alone and with the unpaired rows, and from the latter start
InfoNCE and CS-Aligner without a gate. Differences are paired; standard errors are those of a bootstrap over test items.
Finished cells are kept in --work.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from defaults import SEED, difference, values

from csaligner.adapters.aligner import align
from csaligner.estimator import CSAligner
from csaligner.files import write_json
from csaligner.paired_features import pair_features
from csaligner.run_folder import provenance
from csaligner.selection.gate import LEAST_IMAGES

FEW = "few pairs"
CURVES: Mapping[str, tuple[int, ...]] = {"clip_coco_500": (20, 40, 100, 200), "convirt_500": (20, 40, 100, 200)}
UNPAIRED = (0, 100)  # of each modality
WEIGHTS = {"InfoNCE": 0.0, "CS-Aligner": 1.0}
UNTRAINED, DEFAULT = "untrained", "default"


def few_pairs(name: str, n: int, extra: int, split: int, kept: Path) -> dict[str, Any]:
    """Return the values of each test item by method. extra: unpaired rows of each modality."""
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    rows = np.load(Path(os.environ["CSALIGNER_SHARED"]) / "data" / f"{name}.npy")
    order = np.random.RandomState(SEED + split).permutation(rows.shape[1])
    held, first = 100, 100 + n
    test, train = (pair_features(*rows[:, part]) for part in (order[:held], order[held:first]))
    images, texts = rows[0, order[first : first + extra]], rows[1, order[first + extra : first + 2 * extra]]
    more = (images, texts) if extra else ()
    methods: dict[str, dict[str, Any]] = {UNTRAINED: {"epochs": 0}}
    methods |= {way: {"gate": False, "objective": _terms(weight)} for way, weight in WEIGHTS.items()}
    if n >= LEAST_IMAGES:  # with fewer, the gate does not train
        methods[DEFAULT] = {}
    found = {}
    for way, given in methods.items():
        aligner = CSAligner(verbose=False, seed=split, **given).fit_features(train, *more)
        found[way] = values(align(aligner.model, test)).round(3).tolist()
    found.setdefault(DEFAULT, found[UNTRAINED])
    write_json(kept, found)
    return found


def _terms(weight: float) -> dict[str, Any]:
    return {"terms": {"info_nce": 1.0, "cauchy_schwarz": weight} if weight else {"info_nce": 1.0}}


def curve(splits: int, work: Path) -> list[dict[str, Any]]:
    """Return one record per data set, number of pairs and of unpaired rows: means, and differences of the score to the
    untrained start of the same rows and to that of the pairs alone."""
    records = []
    for name, sizes in CURVES.items():
        for n in sizes:
            alone = None
            for extra in UNPAIRED:
                cells = [few_pairs(name, n, extra, s, work / f"{name}-{n}-{extra}-{s}.json") for s in range(splits)]
                pooled = {way: np.concatenate([np.array(cell[way]) for cell in cells]) for way in cells[0]}
                start = pooled[UNTRAINED]
                alone = start if alone is None else alone
                for way, items in pooled.items():
                    record = {"data": name, "pairs": n, "unpaired": extra, "way": way}
                    record |= {"recall": float(items[:, :2].mean()), "ndcg": float(items[:, 2:].mean())}
                    record |= {"minus start": difference(items.mean(axis=1), start.mean(axis=1))}
                    record |= {"minus pairs alone": difference(items.mean(axis=1), alone.mean(axis=1))}
                    records.append(record)
                    print(record, flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/unpaired.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/unpaired"))
    parser.add_argument("--splits", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    content = {
        "provenance": provenance(options.splits - 1),
        "splits": options.splits,
        "records": curve(options.splits, options.work),
    }
    write_json(options.out, {FEW: content})


if __name__ == "__main__":
    main()
