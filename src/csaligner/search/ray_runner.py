"""`index` on a Ray cluster: each actor holds the encoders and encodes parts, which the driver writes in order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csaligner.adapters.aligner import Aligner
from csaligner.model import AlignedModel
from csaligner.store.ray_runner import RESTARTS, RETRIES, count_actors, result_of, running_ray
from csaligner.types import Encoder, EncoderInfo, Modality

from .encode_entries import EncodedPart, Encoding, Pair, encode_part
from .index import ALIGNER, Index

AHEAD = 2  # parts per actor that are encoded or wait to be written
DIED = ("index: a Ray worker died", "what was written is")  # see result_of


@dataclass(frozen=True)
class RayRunner:
    """make_encoders: called once in each actor, returns the encoders to use instead of those recorded in the index;
    picklable by cloudpickle. actors: number, None: one per GPU, else one per CPU core not used for decoding."""

    make_encoders: Callable[[], Sequence[Encoder]] = tuple
    actors: int | None = None


@dataclass(frozen=True)
class Model:
    """What a worker makes the model of the index from. files: of the aligner's folder, by name; downloads: whether an
    encoder may be downloaded."""

    files: Mapping[str, bytes]
    infos: Mapping[Modality, EncoderInfo]
    downloads: bool

    @classmethod
    def of(cls, index: Index) -> Model:
        folder = index.path / ALIGNER
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return cls(files, {"image": index.manifest.image, "text": index.manifest.text}, index.trusted)

    def open(self, folder: Path, encoders: Sequence[Encoder]) -> AlignedModel:
        """Write the files to a folder, which must last as long as the model, and open them."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        aligner = Aligner.load(folder)
        return AlignedModel(aligner, encoders, infos=self.infos, folder=folder, downloads=self.downloads)


class Worker:
    """The actor class: it opens the model once, then encodes one part per call."""

    def __init__(self, model: Model, make_encoders: Callable[[], Sequence[Encoder]]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._model = model.open(Path(self._folder.name), make_encoders())

    def encode(self, part: Sequence[Pair], how: Encoding) -> EncodedPart:
        return encode_part(self._model, part, how)


def _no_report(reason: str) -> None:
    """Report nothing: the driver reports what was skipped."""


def encode_on_ray(
    index: Index, parts: Iterator[Sequence[Pair]], how: Encoding, runner: RayRunner
) -> Generator[tuple[Sequence[Pair], EncodedPart], None, None]:
    """Yield every part with what `encode_part` returns for it, in the order of the parts.

    Uses the cluster that Ray is connected to or that RAY_ADDRESS names, else a local one. The images must be readable
    by all nodes; the model is sent to them. A killed worker is restarted and its part retried up to RETRIES times.
    Features already in a cache of this process are not used.

    Raises InputError if Ray is not installed, the errors of encode_part, and CSAlignerError if workers keep dying.
    """
    how = replace(how, cache=None, skip=_no_report)
    with running_ray() as ray:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RETRIES)(Worker)
        make = (ray.put(Model.of(index)), runner.make_encoders)
        actors = [actor.remote(*make) for _ in range(runner.actors or count_actors(ray, how.workers))]
        waiting: list[tuple[Sequence[Pair], Any]] = []
        for number, part in enumerate(parts):
            if len(waiting) == AHEAD * len(actors):
                first, result = waiting.pop(0)
                yield first, result_of(ray, result, *DIED)
            waiting.append((part, actors[number % len(actors)].encode.remote(part, how)))
        for part, result in waiting:
            yield part, result_of(ray, result, *DIED)
