"""Process that starts commands quickly, and small data for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from PIL import Image

from csaligner.store.store import write_store
from csaligner.types import EncoderInfo, PairedFeatures
from tests.faults.state import NEEDS
from tests.faults.zygote import ENOUGH

ZYGOTE = Path(__file__).parent / "zygote.py"
PICTURES = 24
HEADS = "image_adapter.hidden=8 text_adapter.hidden=8 evaluate_every=1 monitor=score gate=false"
COMMANDS = {
    "embed": "--train-data {d.pictures} --image-encoder tiny-image --text-encoder tiny-text --shard-size 5 "
    "--batch-size 3 --workers 0",
    "train": f"--train-data {{d.features}} --batch-size 80 --epochs 5 --workers 0 {HEADS}",
    "index": "--data {d.pictures} --run {d.run}",
    "compare": "--data {d.features} --methods none,procrustes,infonce --trials 1 --seeds 1 --epochs 2 "
    "--batch-size 80 --jobs 1",
    "quickstart": "{d.many} --image-encoder tiny-image --text-encoder tiny-text --no-serve",
}


@dataclass(frozen=True)
class Kill:
    """Time of the kill: before the n-th file operation, or some seconds after the first."""

    operation: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """code: exit code, negative for a signal; said: output; operations, seconds: number of file operations, and time
    from the first one to the end, of a command that was not killed."""

    code: int
    said: str
    operations: int
    seconds: float


class Starter:
    """Starts commands in forks of a process that has imported everything."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def __call__(self, words: list[str], watched: Path, kill: Kill | None = None, *, powers: bool = True) -> Outcome:
        """powers: False: drop the capabilities of root, so that file permissions apply."""
        kill = kill or Kill()
        job = {"words": words, "watched": str(watched), "log": str(self._log), "die_at": kill.operation}
        job["powers"] = powers or os.geteuid() != 0
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        pid, operations, began = 0, 0, time.perf_counter()
        while True:
            name, value = self._answer()
            if name == "pid":
                pid = value
            elif name == "operations":
                operations = value
            elif name == "writing":
                began = time.perf_counter()
                if kill.seconds is not None:
                    pid = pid or self._answer()[1]
                    time.sleep(kill.seconds)
                    with contextlib.suppress(ProcessLookupError):  # it finished before the kill
                        os.kill(pid, signal.SIGKILL)
            else:
                said = self._log.read_text(encoding="utf-8", errors="replace")
                return Outcome(value, said, operations, time.perf_counter() - began)

    def _answer(self) -> tuple[str, int]:
        out: IO[str] | None = self._process.stdout
        assert out is not None
        line = out.readline()
        assert line, "the process that commands are started from has ended"
        name, _, value = line.strip().partition(" ")
        return name, int(value or 0)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
    process = subprocess.Popen(
        [sys.executable, str(ZYGOTE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield Starter(process, tmp_path_factory.mktemp("said") / "log.txt")
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=60)


@dataclass(frozen=True)
class Data:
    """pictures, many: folders of images and captions, the second with enough for `quickstart` to train; features: store
    of 300 pairs; store, run: results of `embed` and `train` on the images."""

    pictures: Path
    many: Path
    features: Path
    store: Path
    run: Path

    def words(self, command: str, out: Path) -> list[str]:
        """Return the arguments of the command."""
        return [command, "--out", str(out), "-q", *COMMANDS[command].format(d=self).split()]


@pytest.fixture(scope="session")
def data(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    made = Data(*(folder / name for name in ("pictures", "many", "features", "store", "run")))
    rng = np.random.default_rng(0)
    draw_images(made.pictures, PICTURES, rng)
    image = torch.from_numpy(rng.standard_normal((300, 16), dtype=np.float32))
    text = 0.5 * image + torch.from_numpy(rng.standard_normal((300, 16), dtype=np.float32)) + 0.3
    pairs = PairedFeatures(image, text, torch.arange(300), tuple(f"p{n}" for n in range(300)))
    encoders = (EncoderInfo("a", "1", "image", 16, {}), EncoderInfo("b", "1", "text", 16, {}))
    write_store(made.features, pairs, encoders)
    draw_images(made.many, ENOUGH, rng)
    for command, out in (("embed", made.store), ("train", made.run)):
        words = made.words(command, out)
        done = start([str(made.store) if word == str(made.features) else word for word in words], folder)
        assert done.code == 0, done.said
    return made


def draw_images(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Write random images and their captions."""
    folder.mkdir()
    for n in range(count):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(folder / f"{n:02}.png")
        (folder / f"{n:02}.txt").write_text(f"picture number {n}")


@dataclass(frozen=True)
class Undisturbed:
    """Results of each command without interruption; computed once."""

    start: Starter
    data: Data
    root: Path
    outcomes: dict[str, Outcome]

    def __call__(self, command: str) -> tuple[Path, Outcome]:
        pytest.importorskip(NEEDS.get(command, "torch"), reason="an extra is not installed")
        out = self.root / command
        if command not in self.outcomes:
            self.outcomes[command] = self.start(self.data.words(command, out), out)
        assert self.outcomes[command].code == 0, self.outcomes[command].said
        return out, self.outcomes[command]


@pytest.fixture(scope="session")
def undisturbed(start: Starter, data: Data, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(start, data, tmp_path_factory.mktemp("undisturbed"), {})
