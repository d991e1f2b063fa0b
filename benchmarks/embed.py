"""Throughput of `embed` relative to the encoders alone, on the demo images.

python benchmarks/embed.py --out benchmarks/results/embed.json [--pictures 512] [--repeats 3]

All measurements encode the same images and captions with the same encoders, batch size and torch threads, in turn:
`own` runs forward passes on decoded tensors, one batch at a time on all threads; `own_streams` runs one batch per
thread concurrently, if the encoder supports it, as `embed` does; `embed` reads, decodes, encodes and writes a store.
`decode_ms` and `encode_ms` are processor time per image on one thread, measured alone: if the CPU does both, the
attainable rate at equal use of the cores is bounded by own / (own + decode).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe, write

from csaligner.datasets import open_dataset
from csaligner.datasets.clean import clean_items
from csaligner.datasets.images.load import load_image
from csaligner.encoders import IMAGE_ENCODER, TEXT_ENCODER, open_encoder
from csaligner.store.decode_workers import Decoded
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.streams import encoded, streams_of
from csaligner.types import Encoder, Item


class Some:
    """The first images of a dataset."""

    name, attribution = "some", ""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def items(self) -> Sequence[Item]:
        return self._items


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def own(encoder: Encoder, text: Encoder, ready: Sequence[Any], captions: Sequence[str]) -> None:
    for batch in ready:
        encoder.encode(batch)
    text.encode(captions)


def own_streams(encoder: Encoder, text: Encoder, ready: Sequence[Any], captions: Sequence[str]) -> None:
    batches = [Decoded(tuple(range(len(batch))), batch, {}) for batch in ready]
    for _ in encoded(encoder, batches, streams_of(encoder)):
        pass
    text.encode(captions)


def processor_ms(call: Callable[[], object], pictures: int) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    call()
    spent = time.process_time() - started
    torch.set_num_threads(threads)
    return 1e3 * spent / pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="openmoji")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--image-encoder", default=IMAGE_ENCODER)
    parser.add_argument("--text-encoder", default=TEXT_ENCODER)
    args = parser.parse_args()

    items = list(clean_items(open_dataset(args.data)).items)[: args.pictures]
    image, text = open_encoder(args.image_encoder, "image"), open_encoder(args.text_encoder, "text")
    captions = [caption for item in items for caption in item.captions]
    settings = ExtractSettings(batch_size=args.batch_size, workers=args.workers)

    def ready() -> list[Any]:
        tensors = [image.prepare(load_image(item.image)) for item in items]
        return [torch.stack(tensors[k : k + args.batch_size]) for k in range(0, len(tensors), args.batch_size)]

    batches = ready()
    few = batches[: max(1, len(batches) // 4)]
    own(image, text, few[:1], captions[:64])  # warm
    seconds: dict[str, list[float]] = {"own": [], "own_streams": [], "embed": []}
    for _ in range(args.repeats):
        seconds["own"].append(timed(lambda: own(image, text, batches, captions)))
        seconds["own_streams"].append(timed(lambda: own_streams(image, text, batches, captions)))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "store"
            seconds["embed"].append(timed(partial(embed, Some(items), image, text, out, settings)))
    median = {name: len(items) / statistics.median(values) for name, values in seconds.items()}
    rates = {name: [len(items) / s for s in values] for name, values in seconds.items()}
    result = {
        "command": f"python benchmarks/embed.py --data {args.data} --pictures {args.pictures} --repeats {args.repeats}"
        f" --batch-size {args.batch_size} --workers {args.workers}",
        "encoders": [args.image_encoder, args.text_encoder],
        "pictures": len(items),
        "captions": len(captions),
        "pictures_per_second": rates,
        "median": median,
        "share_of_own_rate": median["embed"] / median["own"],
        "share_of_own_streams_rate": median["embed"] / median["own_streams"],
        "decode_ms": processor_ms(ready, len(items)),
        "encode_ms": processor_ms(lambda: own(image, text, few, captions[: len(captions) // 4]), sum(map(len, few))),
        "machine": describe(),
    }
    write(args.out, result)
    print(", ".join(f"{name} {rate:.1f}/s" for name, rate in median.items()), f"{median['embed'] / median['own']:.1%}")


if __name__ == "__main__":
    main()
