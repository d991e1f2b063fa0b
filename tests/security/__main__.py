"""Reads all malicious inputs in limited child processes; JSON results: python -m tests.security [--out FILE]"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csaligner.datasets.images import drawing
from tests.fuzz.sandbox import MEMORY, RESERVED, outcome_of, peak, size_of_process, wait

from .makers import HARMED
from .malicious import CASES, Case

SECONDS = 10.0


@dataclass(frozen=True)
class Result:
    """outcome: as in fuzzing; seconds, megabytes: time and additional memory of reading."""

    kind: str
    tries: str
    outcome: str
    text: str
    harmless: str
    size: int
    seconds: float
    megabytes: int


def run(case: Case, folder: Path) -> Result:
    made = _child(lambda: {"path": str(case.make(folder))}, limited=False)
    if made is None:
        raise RuntimeError(f"{case.kind}: {case.tries}: could not be made")
    path = Path(made["path"])
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files if not file.is_symlink())
    found = _child(lambda: _read(case, path), limited=True)
    found = found or {"outcome": "died", "text": "", "seconds": SECONDS, "megabytes": 0}
    if (folder / HARMED).exists():
        found |= {"outcome": "harmed"}
    text = str(found["text"]).replace(str(folder), "...")
    return Result(
        case.kind, case.tries, found["outcome"], text, case.harmless, size, found["seconds"], found["megabytes"]
    )


def _read(case: Case, path: Path) -> dict[str, Any]:
    before, started = peak(), _work()
    outcome, text = outcome_of(case.read, path)
    return {
        "outcome": outcome,
        "text": text,
        "seconds": round(_work() - started, 2),
        "megabytes": (peak() - before) >> 20,
    }


def _work() -> float:
    """Return the processor time of this process and of the drawing processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _child(work: Any, *, limited: bool) -> dict[str, Any] | None:
    """Return the result of `work` in a child process; None if it died or timed out."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        if limited:
            limit = size_of_process() + MEMORY + RESERVED
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            os.write(into, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        content = pipe.read() if wait(pipe, child, SECONDS if limited else 120.0) else b""
    if not content:
        os.kill(child, 9)
    os.waitpid(child, 0)
    return json.loads(content) if content else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--heavy", action="store_true", help="also what needs transformers")
    options = parser.parse_args()
    cases = [case for case in CASES if options.heavy or not case.heavy]
    for name in ("pyarrow.parquet", "csaligner.store.store", *(("transformers",) if options.heavy else ())):
        __import__(name)
    drawing.SECONDS = 1  # rounded up to two: the limit of the child includes the time of other processes
    found = []
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="malicious-") as folder:
            found.append(asdict(run(case, Path(folder).resolve())))
    text = json.dumps({"cases": found}, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
