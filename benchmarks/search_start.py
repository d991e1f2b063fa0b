"""Start-up time of `csaligner serve`, to the page and to the first search.

    python benchmarks/search_start.py

Writes "start" of benchmarks/results/search.json. Wall times need a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import machine
import numpy as np
from search import OUT, filled_index

from csaligner.run_folder import provenance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    found = measure_start(arguments.rows, arguments.times)
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    start = {"machine": machine.describe(), "commit": provenance(0)["commit"]} | found
    machine.write(OUT, known | {"start": start})
    print(json.dumps(found, indent=1))


def measure_start(rows: int, times: int) -> dict[str, Any]:
    """Return median seconds from the start of `csaligner serve` to the page, and from the page to the result of a
    search that is asked at once, as wall time and as processor time of the process, which is robust to other load."""
    where = Path(tempfile.mkdtemp())
    try:
        filled_index(where / "index", rows, "exact")
        several = [_start(where / "index") for _ in range(times)]
        found = {name: float(np.median([one[name] for one in several])) for name in several[0]}
        runs = {name: [round(one[name], 2) for one in several] for name in several[0]}
        return {"rows": rows, "times": times, "runs": runs} | {name: round(value, 2) for name, value in found.items()}
    finally:
        shutil.rmtree(where, ignore_errors=True)


def _start(folder: Path) -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "csaligner.cli", "serve", str(folder), "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        found: dict[str, float] = {}
        before = (began, 0.0)
        for name, path in (("page", "/"), ("first_search", "/api/search?q=a+red+house&k=10")):
            _first_answer(process, port, path)
            now = time.perf_counter(), _cpu_seconds(process.pid)
            found |= {f"{name}_s": now[0] - before[0], f"{name}_cpu_s": now[1] - before[1]}
            before = now
        return found
    finally:
        process.terminate()
        process.wait()


def _first_answer(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    while process.poll() is None:
        if _answers(f"http://127.0.0.1:{port}{path}"):
            return
        time.sleep(0.02)
    raise SystemExit(f"serve ended with {process.returncode}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=120) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
