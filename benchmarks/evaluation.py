"""Time and memory of evaluate and of fit, on random features; writes results/evaluation.json.

    python benchmarks/evaluation.py [--out FILE] [--only NAME]

Each case runs in its own process on one thread. seconds: processor time; data_gib: resident memory once the features
are made; peak_gib: its maximum during the call. A case that FILE holds with its commit is not measured again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe

from csaligner.adapters.aligner import Aligner
from csaligner.config import TrainConfig
from csaligner.estimator import CSAligner
from csaligner.evaluation.evaluate import evaluate
from csaligner.evaluation.gap import gap_of
from csaligner.run_folder import provenance
from csaligner.types import PairedFeatures

OUT = Path(__file__).parent / "results" / "evaluation.json"
GIB = 2**20  # kilobytes
# name -> (pairs, dimensions, call)
CASES: dict[str, tuple[int, int, Callable[[PairedFeatures], object]]] = {
    "evaluate": (12_000, 512, evaluate),
    "evaluate_sampled": (200_000, 512, evaluate),
    "gap_metrics_of_all": (200_000, 512, gap_of),
    "start_of_all": (200_000, 768, lambda f: Aligner.fit_start(f, TrainConfig())),
    "fit_untrained": (200_000, 768, lambda f: CSAligner(epochs=0, gate=False, verbose=False).fit_features(f)),
    "fit_one_epoch": (200_000, 768, lambda f: CSAligner(epochs=1, verbose=False).fit_features(f)),
}


def measure(name: str) -> dict[str, float | int]:
    torch.set_num_threads(1)
    n, d, call = CASES[name]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(n, d, generator=generator)
    image += torch.randn(d, generator=generator)
    text = torch.randn(n, d, generator=generator).add_(image, alpha=0.3)
    features = PairedFeatures(image, text, torch.arange(n), tuple(map(str, range(n))))
    few = PairedFeatures(image[:100], text[:100], torch.arange(100), features.image_ids[:100])
    call(few)  # imports
    data = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    began = time.process_time()
    call(features)
    spent, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    return {
        "pairs": n,
        "dimensions": d,
        "seconds": round(spent, 1),
        "data_gib": round(data, 2),
        "peak_gib": round(peak, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", choices=list(CASES))
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only)))
        return
    commit = provenance(0)["commit"]
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    found = {name: case for name, case in known.items() if "commit" in case}
    for name in [name for name in CASES if name not in found]:
        done = subprocess.run([sys.executable, __file__, "--only", name], capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout) | {"commit": commit, "machine": describe()}
        print(name, found[name], flush=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
