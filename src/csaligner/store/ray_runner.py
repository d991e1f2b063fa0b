"""`embed` on a Ray cluster: each actor holds the encoders and makes shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from csaligner.checks import CSAlignerError, InputError
from csaligner.extras import install_command
from csaligner.types import Dataset

from .embed import ExtractSettings, Job
from .shard_maker import Encoders, ProgressCallback, Work
from .shard_records import Part
from .store import Store

RETRIES = 3  # retries of a shard whose worker died
RESTARTS = -1  # no limit


def embed_on_ray(
    dataset: Dataset,
    make_encoders: Callable[[], Encoders],
    out: Path | str,
    settings: ExtractSettings | None = None,
    progress: ProgressCallback | None = None,
    *,
    actors: int | None = None,
) -> Store:
    """Like embed.embed, but the shards are made by `actors` Ray actors (None: one per GPU, else one per CPU core not
    used by settings.workers). The store is identical, byte for byte.

    make_encoders: called once in each actor; it must be picklable by cloudpickle. out: a folder shared by all nodes.
    Uses the cluster that Ray is connected to or that RAY_ADDRESS names, else a local one. A killed worker is restarted
    and its shard retried up to RETRIES times.

    Raises the errors of embed, and CSAlignerError if a shard's workers keep dying.
    """
    _ray()
    settings = settings or ExtractSettings()
    job = Job.of(dataset, make_encoders(), Path(out).absolute(), settings)
    with running_ray() as ray, job.claimed() as todo:
        if todo:
            _run(ray, job, make_encoders, todo, actors or count_actors(ray, settings.workers), progress)
        job.finish()
    return Store.open(out)


@contextmanager
def running_ray() -> Iterator[Any]:
    """Give the module ray, connected to the cluster of RAY_ADDRESS or to a local one; disconnects if it was not
    connected before. Raises InputError if Ray is not installed."""
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        yield ray
    finally:
        if started:
            ray.shutdown()


class Maker:
    """The actor class: it makes its encoders once, then one shard per call."""

    def __init__(self, work: Work, make_encoders: Callable[[], Encoders]) -> None:
        self._work = replace(work, encoders=make_encoders())

    def make(self, number: int) -> Part:
        return next(iter(self._work.run([number])))


def _run(
    ray: Any,
    job: Job,
    make_encoders: Callable[[], Encoders],
    todo: Sequence[int],
    actors: int,
    progress: ProgressCallback | None,
) -> None:
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RETRIES)(Maker)
    work = ray.put(replace(job.work, encoders=Encoders(None, None)))
    idle = [actor.remote(work, make_encoders) for _ in range(min(actors, len(todo)))]
    report, total = job.progress(todo, progress), sum(len(job.work.range_of(number)) for number in todo)
    bad, done, waiting = job.skipped(), 0, list(todo)
    running: dict[Any, tuple[Any, int]] = {}
    while waiting or running:
        while idle and waiting:
            maker, number = idle.pop(), waiting.pop(0)
            running[maker.make.remote(number)] = (maker, number)
        (finished,), _ = ray.wait(list(running))
        maker, number = running.pop(finished)
        idle.append(maker)
        part: Part = result_of(
            ray, finished, f"embed: the Ray workers that made shard {number} died", "finished shards are"
        )
        bad += part.skipped
        job.check_bad(bad)
        done += len(job.work.range_of(number))
        if report is not None:
            report(done, total)


def result_of(ray: Any, finished: Any, died: str, kept: str) -> Any:
    """Return what a worker made. died, kept: parts of the message if workers died more often than is retried.

    Raises CSAlignerError of the worker, from its start too, or if it died."""
    try:
        return ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CSAlignerError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        if isinstance(cause := getattr(error, "cause", None), CSAlignerError):
            raise cause from None
        reason = str(error).splitlines()[0]
        message = f"{died} {RETRIES + 1} times ({reason}); {kept} kept, run it again to resume"
        raise CSAlignerError(message) from None


def count_actors(ray: Any, workers: int) -> int:
    """Return the default number of actors: one per GPU, or one per group of `workers` + 1 CPU cores."""
    resources = ray.cluster_resources()
    return max(1, int(resources.get("GPU", 0)) or int(resources.get("CPU", 1)) // (1 + workers))


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(f"runner: {error}; {install_command('ray')}") from None
    return ray
