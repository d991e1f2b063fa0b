"""Several processes on one store: ranks, Ray workers and locked-out writers."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from csaligner.checks import CSAlignerError, InputError
from csaligner.locks import lock_path, only_writer
from csaligner.store import ray_runner
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.ray_runner import embed_on_ray
from csaligner.types import Item

MakeItems = Callable[[int], list[Item]]
JOB = Path(__file__).parent / "embed_job.py"
KILLS = 10 if "CSALIGNER_HEAVY" in os.environ else 3  # 10 in `make nightly`
SMALL = ExtractSettings(shard_size=2, batch_size=1, workers=0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def job() -> dict[str, Any]:
    return runpy.run_path(str(JOB))


@pytest.fixture
def pictures(make_items: MakeItems) -> Path:
    """Dataset of 11 images, one of them damaged."""
    items = make_items(11)
    Path(str(items[5].image)).write_bytes(b"no picture")
    return Path(str(items[0].image)).parent


@pytest.fixture
def whole(tmp_path: Path, pictures: Path, job: dict[str, Any]) -> dict[str, bytes]:
    settings = ExtractSettings(shard_size=2, batch_size=1, workers=0, max_bad=0.1)
    embed(job["Pictures"](pictures), job["MeanColour"](), job["Length"](), tmp_path / "whole", settings)
    return files(tmp_path / "whole")


RANKS = """
import runpy, sys
from pathlib import Path
from csaligner.checks import InputError
from csaligner.store.embed import ExtractSettings, embed
job = runpy.run_path(sys.argv[1])
def call(out):
    words = (job["Pictures"](Path(sys.argv[2])), job["MeanColour"](), job["Length"](), out)
    embed(*words, ExtractSettings(2, 1, 0, 0.1))
call(sys.argv[3])
call(sys.argv[3])
try:
    call(sys.argv[4])
except InputError as error:
    print(error)
"""


def test_ranks_make_the_store_of_one_process(
    tmp_path: Path, pictures: Path, job: dict[str, Any], whole: dict[str, bytes]
) -> None:
    script, out, other = tmp_path / "ranks.py", tmp_path / "out", tmp_path / "other"
    script.write_text(RANKS)
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    done = start_ranks(2, [str(script), str(JOB), str(pictures), str(out), str(other)])
    assert [code for code, _, _ in done] == [0, 0], done
    assert files(out) == whole
    assert all("csaligner store" in said for _, said, _ in done), done  # each rank knows


def start_ranks(ranks: int, words: list[str]) -> list[tuple[int, str, str]]:
    """Run a script on ranks with the environment of torchrun, in forks, which have imported what it needs; returns
    exit code, output and errors of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    logs = [Path(words[0]).with_suffix(f".{rank}") for rank in range(ranks)]

    def run(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(shared | {"RANK": str(rank)})
        sys.argv = words
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(f"{logs[rank]}.out", "w"))))
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(f"{logs[rank]}.err", "w"))))
            runpy.run_path(words[0], run_name="__main__")

    running = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(ranks)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    said = [(Path(f"{log}.out").read_text(), Path(f"{log}.err").read_text()) for log in logs]
    codes = [-1 if process.exitcode is None else process.exitcode for process in running]
    return [(code, *words) for code, words in zip(codes, said, strict=True)]


@pytest.fixture
def ray() -> Iterator[Any]:
    found = pytest.importorskip("ray", reason="the package ray is not installed")
    found.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield found
    found.shutdown()


def test_ray_workers_make_the_same_store_though_one_is_killed(
    tmp_path: Path,
    pictures: Path,
    job: dict[str, Any],
    whole: dict[str, bytes],
    ray: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark, path, seen = tmp_path / "killed", str(JOB), list[tuple[int, int]]()
    dataset = job["Pictures"](pictures)

    def make() -> Any:
        import runpy

        return runpy.run_path(path)["encoders"](mark)

    def deadly() -> Any:
        import os
        import signal

        found = make()
        found.text.encode = lambda prepared: os.kill(os.getpid(), signal.SIGKILL)
        return found

    settings = ExtractSettings(shard_size=2, batch_size=1, workers=0, max_bad=0.1)
    with pytest.raises(KeyboardInterrupt):  # started on one process
        embed(dataset, StopsAt(job["MeanColour"](), 4), job["Length"](), tmp_path / "out", settings)
    embed_on_ray(dataset, make, tmp_path / "out", settings, lambda done, all_: seen.append((done, all_)), actors=2)
    assert mark.exists()  # a worker was killed
    assert (len(seen), seen[-1]) == (5, (11, 11))  # the first shard was not embedded again
    assert files(tmp_path / "out") == whole

    monkeypatch.setattr(ray_runner, "RETRIES", 0)
    with pytest.raises(CSAlignerError, match="shards") as caught:
        embed_on_ray(dataset, deadly, tmp_path / "other", settings, actors=1)
    assert "\n" not in str(caught.value)
    with only_writer(tmp_path / "other"):
        pass


class StopsAt:
    """Encoder that raises KeyboardInterrupt in its n-th call of encode."""

    def __init__(self, encoder: Any, calls: int) -> None:
        self.info, self.prepare, self._encoder, self._calls = encoder.info, encoder.prepare, encoder, calls

    def encode(self, prepared: Any) -> Any:
        self._calls -= 1
        if self._calls == 0:
            raise KeyboardInterrupt
        return self._encoder.encode(prepared)


def test_a_second_writer_is_refused_and_a_dead_ones_lock_taken_over(
    tmp_path: Path, pictures: Path, job: dict[str, Any], whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom csaligner.locks import only_writer\n"
        "with only_writer(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(out)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    settings = ExtractSettings(shard_size=2, batch_size=1, workers=0, max_bad=0.1)
    words = (job["Pictures"](pictures), job["MeanColour"](), job["Length"](), out, settings)
    with pytest.raises(InputError, match="another process"):
        embed(*words)
    assert not out.exists()
    other.kill()
    other.wait()
    assert lock_path(out).exists()
    embed(*words)
    assert files(out) == whole


def test_a_store_with_the_lock_file_of_an_older_version_is_taken_over(
    tmp_path: Path, pictures: Path, job: dict[str, Any], whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    old = out / ".embed.lock"
    old.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    settings = ExtractSettings(shard_size=2, batch_size=1, workers=0, max_bad=0.1)
    embed(job["Pictures"](pictures), job["MeanColour"](), job["Length"](), out, settings)
    assert files(out) == whole | {old.name: old.read_bytes()}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_in_a_closed_parent_is_locked_inside(tmp_path: Path) -> None:
    out = tmp_path / "closed" / "out"
    out.mkdir(parents=True)
    out.parent.chmod(0o555)
    with only_writer(out), pytest.raises(InputError, match="another process"), only_writer(out):
        raise AssertionError("held twice")
    with pytest.raises(CSAlignerError, match="written"), only_writer(out.with_name("new")):
        raise AssertionError("held")


def test_killed_several_times_at_a_random_moment(
    tmp_path: Path, pictures: Path, job: dict[str, Any], whole: dict[str, bytes]
) -> None:
    """Kills the process with a timer, at a time between its start and shortly after its end."""
    chance = random.Random(0)
    settings = ExtractSettings(shard_size=2, batch_size=1, workers=0, max_bad=0.1)

    def run(out: Path, delay: float | None, number: int = 0) -> None:
        if delay is not None:
            threading.Timer(delay, os.kill, (os.getpid(), number)).start()
        embed(job["Pictures"](pictures), job["MeanColour"](pause=0.005), job["Length"](), out, settings)
        os._exit(0)

    began = time.perf_counter()
    assert exit_code(run, tmp_path / "timed", None) == 0
    duration = time.perf_counter() - began
    killed, out = 0, tmp_path / "out"
    while killed < KILLS:
        code = exit_code(run, out, chance.uniform(0, duration), chance.choice([signal.SIGKILL, signal.SIGTERM]))
        killed += code < 0
        if code == 0:  # it finished before the kill: start again
            assert files(out) == whole
            shutil.rmtree(out)
    assert exit_code(run, out, None) == 0
    assert files(out) == whole


def exit_code(call: Callable[..., None], *words: Any) -> int:
    """Return the exit code of a fork that makes this call; single-threaded, since threads do not survive a fork."""

    def alone() -> None:
        torch.set_num_threads(1)
        call(*words)

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode
