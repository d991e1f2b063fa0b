"""`index` on a Ray cluster: each actor holds the encoders and encodes parts, which the driver writes in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csaligner.model import AlignedModel
from csaligner.store.ray_runner import RESTARTS, RETRIES, count_actors, result_of, running_ray
from csaligner.types import Encoder

from .encode_entries import EncodedPart, Encoding, Pair, encode_part
from .index import Index

AHEAD = 2  # parts per actor that are encoded or wait to be written
DIED = ("index: a Ray worker died", "what was written is")  # see result_of


@dataclass(frozen=True)
class RayRunner:
    """make_encoders: called once in each actor, returns the encoders to use instead of those recorded in the index;
    picklable by cloudpickle. actors: number, None: one per GPU, else one per CPU core not used for decoding."""

    make_encoders: Callable[[], Sequence[Encoder]] = tuple
    actors: int | None = None


class Worker:
    """The actor class: it opens the model of the index once, then encodes one part per call."""

    def __init__(self, folder: Path, make_encoders: Callable[[], Sequence[Encoder]], trust: bool) -> None:
        self._model: AlignedModel = Index.open(folder, make_encoders(), trust=trust).model

    def encode(self, part: Sequence[Pair], how: Encoding) -> EncodedPart:
        return encode_part(self._model, part, how)


def _no_report(reason: str) -> None:
    """Report nothing: the driver reports what was skipped."""


def encode_on_ray(
    index: Index, parts: Iterator[Sequence[Pair]], how: Encoding, runner: RayRunner
) -> Generator[tuple[Sequence[Pair], EncodedPart], None, None]:
    """Yield every part with what `encode_part` returns for it, in the order of the parts.

    Uses the cluster that Ray is connected to or that RAY_ADDRESS names, else a local one. The index folder and the
    images must be readable by all nodes; a killed worker is restarted and its part retried up to RETRIES times.
    Features already in a cache of this process are not used.

    Raises InputError if Ray is not installed, the errors of encode_part, and CSAlignerError if workers keep dying.
    """
    how = replace(how, cache=None, skip=_no_report)
    with running_ray() as ray:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RETRIES)(Worker)
        make = (index.path.absolute(), runner.make_encoders, index.trusted)
        actors = [actor.remote(*make) for _ in range(runner.actors or count_actors(ray, how.workers))]
        waiting: list[tuple[Sequence[Pair], Any]] = []
        for number, part in enumerate(parts):
            if len(waiting) == AHEAD * len(actors):
                first, result = waiting.pop(0)
                yield first, result_of(ray, result, *DIED)
            waiting.append((part, actors[number % len(actors)].encode.remote(part, how)))
        for part, result in waiting:
            yield part, result_of(ray, result, *DIED)
