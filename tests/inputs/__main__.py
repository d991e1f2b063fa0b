"""All situations, and a folder of mixed files with the bundled encoders.

python -m tests.inputs [--files 5000] --out benchmarks/results/inputs.json; then `make docs` writes the tables of
docs/trust.md. The exit code is 1 if a result is wrong or a file is not accounted for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csaligner.pipeline import embed_dataset
from csaligner.search.build import build_index
from csaligner.store.embed import ExtractSettings

from .files import SITUATIONS as FILES
from .mixed import ODD, account_of_index, account_of_store, mixed
from .others import SITUATIONS as OTHERS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000, help="of the folder of mixed files; 0: keep the record")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kept = options.out.is_file() and not options.files
    found: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8")) if kept else {}
    if options.files:
        with tempfile.TemporaryDirectory() as scratch:  # first: workers are forked before LanceDB starts threads
            found["mixed"] = mixed_files(Path(scratch), options.files)
    found["situations"] = situations()
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    wrong = [case for case in found["situations"] if case["wrong"]]
    for case in wrong:
        print(f"{case['kind']}: {case['name']}: {case['wrong']}")
    unaccounted = found.get("mixed", {}).get("unaccounted", 0)
    print(f"{len(found['situations'])} situations, {len(wrong)} wrong; {unaccounted} files unaccounted for")
    return int(bool(wrong or unaccounted))


def situations() -> list[dict[str, Any]]:
    found = []
    for situation in (*FILES, *OTHERS):
        with tempfile.TemporaryDirectory() as scratch:
            result, wrong = situation.run(Path(scratch))
        found.append({"kind": situation.kind, "name": situation.name} | asdict(result) | {"wrong": wrong})
    return found


def mixed_files(scratch: Path, files: int) -> dict[str, Any]:
    """Embed and index a folder of mixed files; return what was made, and what the reports account for."""
    made = mixed(scratch / "m", files)
    started = time.perf_counter()
    store = embed_dataset(str(scratch / "m"), scratch / "s", settings=ExtractSettings(workers=2))
    embedded = time.perf_counter()
    index, report = build_index(str(scratch / "m"), scratch / "i", "bundled")
    seconds = {"embed": round(embedded - started, 1), "index": round(time.perf_counter() - embedded, 1)}
    of_store, of_index = account_of_store(store), account_of_index(index, report)
    unaccounted = abs(made.total() - of_store.total()) + sum(abs(made[k] - of_index[k]) for k in made | of_index)
    found = {"files": files, "kinds_of_odd_files": len(ODD), "made": made, "embed": of_store, "index": of_index}
    return found | {"seconds": seconds, "unaccounted": unaccounted}


if __name__ == "__main__":
    sys.exit(main())
