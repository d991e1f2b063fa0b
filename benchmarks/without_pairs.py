"""Two models without pairs: is the match of csaligner.spaces.align_unpaired right, and does it know?

    python benchmarks/without_pairs.py [--vectors FOLDER] [--clip FILE] [--out FILE]

Synthetic clusters in a hidden basis, an isotropic cloud, and, with the vectors that benchmarks/migration.py keeps in
FOLDER, sentences: all-MiniLM-L6-v2 in a hidden basis with noise, and against the other encoders, with the same 2,000
sentences on both sides or different ones, one seed. FILE is clip_coco_500.npy, images against their captions.

top-1 and top-10: fraction of held-out items (of the same ones without held-out items) whose own item is among the
nearest, mapped from the first space. after D_CS: top-1 after 100 steps that reduce D_CS of the two clouds from the
match, with a rotation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table_text import RESULTS
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.divergences import cauchy_schwarz_divergence
from csaligner.files import write_json
from csaligner.run_folder import provenance
from csaligner.spaces import Space, UnpairedStart, align_unpaired

ROWS, HELD, SEEDS = 2000, 2000, (0, 1, 2)
STEPS, BATCH, LR, BANDWIDTH = 100, 512, 0.01, 0.2
Cloud = tuple[Tensor, Tensor]  # row i of both is one item


def clusters(seed: int, count: int = 20, n: int = 1000, d: int = 32) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(count, d, generator=g)
    sizes = torch.rand(count, generator=g) + 0.3
    return centres[torch.multinomial(sizes, n, replacement=True, generator=g)] + 0.5 * torch.randn(n, d, generator=g)


def hidden(rows: Tensor, noise: float, seed: int) -> Tensor:
    """Rows in another basis, with noise relative to their spread, and a shift."""
    g = torch.Generator().manual_seed(seed + 100)
    basis = torch.linalg.qr(torch.randn(rows.shape[1], rows.shape[1], generator=g))[0]
    spread = (rows - rows.mean(dim=0)).square().mean().sqrt()
    return rows @ basis + noise * spread * torch.randn(rows.shape, generator=g) + spread


def refined(found: UnpairedStart, x: Tensor, y: Tensor) -> Tensor:
    """Return the rotation after steps of D_CS between the two clouds, kept a rotation."""
    x, y = normalize(normalize(x.float(), dim=1) - found.means[0], dim=1), found.transform_second(y)
    rotation, g = found.rotation.clone().requires_grad_(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([rotation], lr=LR / len(rotation) ** 0.5)
    for _ in range(STEPS):
        a, b = (rows[torch.randint(len(rows), (BATCH,), generator=g)] for rows in (x, y))
        optimizer.zero_grad()
        cauchy_schwarz_divergence(normalize(a @ rotation, dim=1), b, bandwidth=BANDWIDTH).backward()
        optimizer.step()
        with torch.no_grad():
            u, _, vh = torch.linalg.svd(rotation, full_matrices=False)
            rotation.copy_(u @ vh)
    return rotation.detach()


def near(found: UnpairedStart, rotation: Tensor, items: Cloud, k: int) -> float:
    x = normalize(normalize(items[0].float(), dim=1) - found.means[0], dim=1)
    top = (normalize(x @ rotation, dim=1) @ found.transform_second(items[1]).T).topk(k, dim=1).indices
    return float((top == torch.arange(len(top))[:, None]).any(dim=1).float().mean())


def record(name: str, known: Cloud, asked: Cloud, seed: int) -> dict[str, Any]:
    order = torch.randperm(len(known[1]), generator=torch.Generator().manual_seed(seed))
    x, y, began = known[0], known[1][order], time.process_time()
    found = align_unpaired(Space.of("first", x), Space.of("second", y), seed=seed)
    seconds = time.process_time() - began
    values = {f"top{k}": near(found, found.rotation, asked, k) for k in (1, 10)}
    values["top1_after_cs"] = near(found, refined(found, x, y), asked, 1)
    print(name, seed, found.sentence, values, flush=True)
    return {"name": name, "seed": seed, "cpu_seconds": round(seconds, 1)} | values | found.record()


def sentences(folder: Path, seed: int) -> list[dict[str, Any]]:
    vectors = {name: torch.from_numpy(np.load(folder / f"v_{name}.npy")) for name in ("minilm", "e5", "wordllama")}
    order = torch.randperm(len(vectors["minilm"]), generator=torch.Generator().manual_seed(seed))
    a, b, held = order[:ROWS], order[ROWS : 2 * ROWS], order[-HELD:]
    minilm = vectors["minilm"]
    exact, noisy = hidden(minilm, 0.0, seed), hidden(minilm, 0.5, seed)
    cases = (
        ("MiniLM, hidden basis, the same sentences", minilm, exact, a),
        ("MiniLM, hidden basis, different sentences", minilm, exact, b),
        ("MiniLM, hidden basis, noise 0.5, the same sentences", minilm, noisy, a),
        ("e5 and MiniLM, the same sentences", vectors["e5"], minilm, a),
        ("WordLlama and MiniLM, the same sentences", vectors["wordllama"], minilm, a),
    )
    return [record(name, (x[a], y[rows]), (x[held], y[held]), seed) for name, x, y, rows in cases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "without_pairs.json")
    args = parser.parse_args()
    about, records = provenance(SEEDS[-1]), []
    for seed in SEEDS:
        for noise in (0.1, 0.5):
            x = clusters(seed)
            pair = x, hidden(x, noise, seed)
            records.append(record(f"20 clusters, hidden basis, noise {noise:g}", pair, pair, seed))
        x = torch.randn(1000, 32, generator=torch.Generator().manual_seed(seed))
        pair = x, hidden(x, 0.0, seed)
        records.append(record("isotropic cloud, hidden basis", pair, pair, seed))
        if args.clip:
            image, text = (torch.from_numpy(rows).float() for rows in np.load(args.clip))
            records.append(record("CLIP, images and captions", (image, text), (image, text), seed))
    if args.vectors:
        records += sentences(args.vectors, 0)
    write_json(args.out, about | {"steps": STEPS, "bandwidth": BANDWIDTH, "records": records})


if __name__ == "__main__":
    main()
