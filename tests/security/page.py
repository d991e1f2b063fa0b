"""A server of the search page in a process of its own, with few open files and short deadlines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = 128


@dataclass(frozen=True)
class Page:
    """port: of the server; log: its standard error; pid: its process."""

    port: int
    log: Path
    pid: int

    @property
    def peak(self) -> int:
        """Return the largest resident memory so far, in MB."""
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(encoding="ascii"))
        assert found is not None
        return int(found[1]) >> 10


@contextmanager
def serving(index: Path, log: Path, *, headers: float = 1.0, files: int = FILES) -> Iterator[Page]:
    """Serve an index of plain colours. headers: deadline for headers, in seconds."""
    code = f"""if True:
        import resource, torch
        from tests.support.colours import ColourImages, ColourTexts
        from csaligner.app import protocol, server
        from csaligner.search.index import Index
        torch.set_num_threads(1)
        protocol.HEADERS = {headers}
        index = Index.open({str(index)!r}, (ColourImages(), ColourTexts()))
        resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))
        server.serve(index, server.ServeSettings(port=0), lambda url: print(url, flush=True))
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
    try:
        assert process.stdout is not None
        url = process.stdout.readline()
        assert url, log.read_text(encoding="utf-8")
        yield Page(int(url.strip().rstrip("/").rpartition(":")[2]), log, process.pid)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
