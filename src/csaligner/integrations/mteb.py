"""Aligned models in mteb: an encoder for its retrieval tasks with texts, images and both, and MixBench as its tasks.

    python -m csaligner.integrations.mteb RUN --mixbench DIR
    python -m csaligner.integrations.mteb RUN --tasks CIRRIT2IRetrieval VidoreDocVQARetrieval

prints nDCG@10 and the main score of each task. mteb downloads its own tasks; the folder of MixBench, which mteb does
not have, is read by datasets.mixbench. Written for mteb 2 (models_protocols.EncoderProtocol).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image as PILImage
from torch import Tensor

from csaligner.adapters.fusion import WEIGHT, check_image_weight
from csaligner.checks import InputError
from csaligner.datasets.images.load import read_bytes
from csaligner.datasets.mixbench import MixBenchSet, MixItem, read_mixbench
from csaligner.model import AlignedModel
from csaligner.search.mixbench import encode_parts

NAMES = ("text", "image")
REFERENCE = "https://arxiv.org/abs/2507.19054"


class AlignedEncoder:
    """mteb's EncoderProtocol for an aligned model: unit vectors, cosine similarity.

        model = AlignedEncoder("runs/coco")
        mteb.evaluate(model, mteb.get_tasks(tasks=["CIRRIT2IRetrieval"]))

    A row with an image and a text is one vector, fused with image_weight (adapters.fusion.fuse); an empty text and a
    missing image count as absent.
    """

    def __init__(
        self,
        model_name: str | AlignedModel,
        revision: str | None = None,
        *,
        device: str | None = None,
        image_weight: float = WEIGHT,
        **_: Any,
    ) -> None:
        """model_name: a model, or its name for AlignedModel.open. revision, device: part of mteb's protocol, not used.
        Raises InputError for a weight out of range and as AlignedModel.open does."""
        check_image_weight(image_weight)
        self.model = model_name if isinstance(model_name, AlignedModel) else AlignedModel.open(model_name)
        self.image_weight = image_weight

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> Tensor:
        """Encode batches {"text": [str], "image": [PIL image]}, of one of these or both, to unit rows (N, dim).

        inputs: mteb's DataLoader. The task, the split and the type of prompt are not used. Raises InputError for a row
        with neither, and for batches of audio or video only.
        """
        rows = [self._encode(batch) for batch in inputs]
        return torch.cat(rows) if rows else torch.empty(0, self.model.dim)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosines of all pairs of rows, (N, M)."""
        return _rows(embeddings1) @ _rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of row i with row i, (N,)."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(dim=1)

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's ModelMeta: name, revision (the fingerprint of the weights), dimension and modalities."""
        from mteb.models import ModelMeta

        name = Path(self.model.name).name or "model"
        values = {
            "name": f"csaligner/{name}",
            "revision": self.model.fingerprint,
            "embed_dim": self.model.dim,
            "modalities": list(self.model.modalities),
            "similarity_fn_name": "cosine",
            "use_instructions": False,
            "framework": ["PyTorch"],
        }
        return ModelMeta.create_empty(values)

    def _encode(self, batch: Mapping[str, Any]) -> Tensor:
        columns = [list(batch[name]) for name in NAMES if name in batch]
        if not columns:
            raise InputError(f"mteb: got a batch of {', '.join(batch)}, wanted text, image or both")
        count = len(columns[0])
        texts = [text or "" for text in batch["text"]] if "text" in batch else [""] * count
        images = list(batch["image"]) if "image" in batch else [None] * count
        items = [
            MixItem(str(n), text.strip(), image) for n, (text, image) in enumerate(zip(texts, images, strict=True))
        ]
        if any(not item.text and item.image is None for item in items):
            raise InputError("mteb: a row has neither a text nor an image; drop it from the task")
        return encode_parts(self.model, items).mapped(self.model.align).fused(self.image_weight)


def mixbench_tasks(data: Path | str | Sequence[MixBenchSet]) -> list[Any]:
    """Return the sets of a MixBench folder as retrieval tasks of mteb. Raises InputError as read_mixbench does."""
    sets = read_mixbench(data) if isinstance(data, (str, Path)) else data
    return [_task(each) for each in sets]


def _task(data: MixBenchSet) -> Any:
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    both = any(query.image is not None for query in data.queries)
    name = "MixBench" + data.name.replace("_", "")

    class Task(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = TaskMetadata(
            name=name,
            description=f"MixBench, {data.name}: texts, images and items with both in one ranking.",
            reference=REFERENCE,
            dataset={"path": "mixed-modality-search/MixBench2026", "revision": "local", "name": data.name},
            type="Any2AnyRetrieval",
            category="it2it" if both else "t2it",
            modalities=["text", "image"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc: int | None = None, **_: Any) -> None:
            split = {
                "queries": _dataset(data.queries, images=both),
                "corpus": _dataset(data.corpus, images=True),
                "relevant_docs": {query: dict(gains) for query, gains in data.qrels.items()},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Task()


def _dataset(items: Sequence[MixItem], *, images: bool) -> Any:
    """Return a table of id, text ("" without one) and image (None without one)."""
    from datasets import Dataset, Features, Image, Value

    columns: dict[str, Any] = {"id": [item.id for item in items], "text": [item.text for item in items]}
    features = {"id": Value("string"), "text": Value("string")}
    if images:
        columns["image"] = [{"bytes": _bytes(item), "path": None} if item.image is not None else None for item in items]
        features["image"] = Image()
    return Dataset.from_dict(columns, features=Features(features))


def _bytes(item: MixItem) -> bytes:
    assert item.image is not None
    assert not isinstance(item.image, PILImage)
    return item.image.read_bytes() if isinstance(item.image, Path) else read_bytes(item.image)


def _rows(values: Any) -> Tensor:
    rows = torch.as_tensor(values, dtype=torch.float32)
    return rows if rows.ndim > 1 else rows[None]


def main(words: Sequence[str] | None = None) -> None:
    """Run tasks and print their scores as JSON."""
    parser = argparse.ArgumentParser(prog="python -m csaligner.integrations.mteb", description=__doc__)
    parser.add_argument("run", help="a run folder, a saved aligner, bundled or an encoder")
    parser.add_argument("--mixbench", type=Path, help="folder of MixBench")
    parser.add_argument("--tasks", nargs="*", default=[], help="names of mteb's tasks")
    parser.add_argument("--image-weight", type=float, default=WEIGHT, help="of items with an image and a text")
    options = parser.parse_args(words)
    import mteb

    tasks = [*mteb.get_tasks(tasks=options.tasks)] if options.tasks else []
    tasks += mixbench_tasks(options.mixbench) if options.mixbench else []
    if not tasks:
        parser.error("give --mixbench DIR or --tasks NAME ...")
    model = AlignedEncoder(options.run, image_weight=options.image_weight)
    results = mteb.evaluate(model, tasks, co2_tracker=False, cache=None)
    found = {
        result.task_name: {
            split: [{name: score[name] for name in ("ndcg_at_10", "main_score") if name in score} for score in scores]
            for split, scores in result.scores.items()
        }
        for result in results.task_results
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
