"""Toy example of the paper: pairs with high mutual information whose distributions are far apart.

    python examples/toy.py --out docs/toy.svg --json benchmarks/results/toy.json

x = z + e, y = z + e' + shift with z ~ N(0, I), e, e' ~ N(0, s^2 I) in two dimensions. Mutual information does not
depend on the shift: I = -log(1 - r^2) nats for two dimensions, r = 1/(1 + s^2). The divergence does: for Gaussians
D_CS has a closed form, which the estimate from samples should match.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from csaligner import cauchy_schwarz_divergence
from csaligner.files import write_atomically, write_json

NOISE, SIGMA, ROWS = 0.3, 0.5, 2000
SHIFTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


def pairs(shift: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return samples (N, 2) and (N, 2), float64."""
    g = torch.Generator().manual_seed(seed)
    z, e, f = (torch.randn(ROWS, 2, generator=g, dtype=torch.float64) for _ in range(3))
    return z + NOISE * e, z + NOISE * f + torch.tensor([shift, 0.0])


def mutual_information(x: Tensor, y: Tensor) -> float:
    """Mutual information of jointly Gaussian samples, in nats: 1/2 log(|S_x| |S_y| / |S|)."""
    covariances = [torch.cov(part.T).logdet() for part in (x, y, torch.cat([x, y], dim=1))]
    return float(covariances[0] + covariances[1] - covariances[2]) / 2


def exact_divergence(shift: float) -> float:
    """D_CS of N(0, v I) and N((shift, 0), v I), v = 1 + s^2: the log-determinants cancel, which leaves
    shift^2 / (2 v + sigma^2)."""
    return shift**2 / (2 * (1 + NOISE**2) + SIGMA**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/toy.svg"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/toy.json"))
    options = parser.parse_args()
    records = []
    for shift in SHIFTS:
        x, y = pairs(shift)
        estimate = float(cauchy_schwarz_divergence(x, y, bandwidth=SIGMA))
        found = {"shift": shift, "mutual_information": mutual_information(x, y), "d_cs": estimate}
        records.append(found | {"d_cs_exact": exact_divergence(shift)})
    r = 1 / (1 + NOISE**2)
    write_json(options.json, {"mutual_information_exact": -math.log(1 - r**2), "records": records})
    write_atomically(options.out, lambda path: _draw(records, path))


def _draw(records: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, shift in zip(panels, (0.0, 3.0), strict=False):
        x, y = (part[:400] for part in pairs(shift))
        axes.plot(*x.T, "o", color="#0072b2", markersize=3, alpha=0.5, markeredgewidth=0, label="x")
        axes.plot(*y.T, "^", color="#d55e00", markersize=3, alpha=0.5, markeredgewidth=0, label="y")
        axes.set_title(f"shift {shift:g}", fontsize=11)
        axes.set_aspect("equal")
        axes.set_xlim(-4, 7)
        axes.set_ylim(-4, 4)
        axes.legend(frameon=False, loc="upper right")
    shifts = [r["shift"] for r in records]
    panels[2].plot(
        shifts, [r["mutual_information"] for r in records], "s-", color="#5b6472", label="mutual information"
    )
    panels[2].plot(shifts, [r["d_cs"] for r in records], "o", color="#00795a", label="D_CS, estimated")
    panels[2].plot(shifts, [r["d_cs_exact"] for r in records], "-", color="#00795a", label="D_CS, exact")
    panels[2].set_xlabel("shift")
    panels[2].set_ylabel("nats")
    panels[2].legend(frameon=False)
    panels[2].spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
