"""Fuzzer of all readers, in turn until the time is up: python -m tests.fuzz [--seconds 600] [--seed 0] [--only NAME]

Prints each distinct failure once, with the seed that reproduces it; exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .sandbox import Outcome, fuzz, prepare
from .targets import TARGETS

ROUND, HEAVY_ROUND = 60, 8
# by most readers; once here instead of in each child
IMPORTED = ("pyarrow.parquet", "csaligner.config", "csaligner.datasets", "csaligner.store.import_features")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(TARGETS))
    parser.add_argument("--rounds", type=int, help="of ten inputs of each reader, instead of the time")
    parser.add_argument("--out", type=Path, help="a JSON with the counts")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {name: Counter() for name in options.only}
    seen: set[str] = set()
    for name in IMPORTED:
        __import__(name)
    with tempfile.TemporaryDirectory(prefix="fuzz-valid-") as scratch:
        for name in options.only:
            prepare(TARGETS[name], Path(scratch) / name.replace("/", "-"))
        end = time.monotonic() + options.seconds
        seed = options.seed
        done = 0
        while time.monotonic() < end if options.rounds is None else done < options.rounds:
            done += 1
            for name in options.only:
                many = 10 if options.rounds else HEAVY_ROUND if TARGETS[name].heavy else ROUND
                seeds = list(range(seed, seed + many))
                for outcome in fuzz(TARGETS[name], seeds, Path(scratch) / name.replace("/", "-")):
                    counts[name][outcome.kind] += 1
                    if not outcome.good and _mark(outcome) not in seen:
                        seen.add(_mark(outcome))
                        print(f"== {name}, seed {outcome.seed} ({outcome.mutation}): {outcome.kind}\n{outcome.text}")
                        sys.stdout.flush()
                if options.rounds is None and time.monotonic() > end:
                    break
            seed += ROUND
    total = sum((counter for counter in counts.values()), Counter())
    print(f"{sum(total.values())} inputs: {dict(total)}; {len(seen)} different findings")
    if options.out:
        options.out.write_text(
            json.dumps({"seconds": options.seconds, "seed": options.seed, "counts": counts}, indent=1)
        )
    return int(bool(seen))


def _mark(outcome: Outcome) -> str:
    """Return the key of a finding: its last line and place."""
    lines = [line for line in outcome.text.splitlines() if line.strip()]
    places = [line.strip() for line in lines if line.strip().startswith("File ")]
    return outcome.kind + "".join(places[-1:]) + (lines[-1][:60] if lines else "")


if __name__ == "__main__":
    sys.exit(main())
