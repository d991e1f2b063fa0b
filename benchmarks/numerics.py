"""Numerical errors of D_CS against float64, for csaligner and common alternative implementations.

    python benchmarks/numerics.py --out benchmarks/results/numerics.json

Every implementation gets the same rounded inputs; the truth is the dense reference in float64 on those. Errors are
relative: of the value, |error| / max(1, |truth|); of the gradient in x, largest error / largest entry, taken in the
tangential direction for unit rows. null: infinite or NaN.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe, write
from torch import Tensor
from torch.nn.functional import normalize

from csaligner.divergences.cauchy_schwarz import cauchy_schwarz_divergence
from csaligner.ops import reference
from csaligner.ops.kernels import Gaussian

ROWS, DIM = 256, 64
SIGMAS = (1.0, 0.3, 0.1, 0.02)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Divergence = Callable[[Tensor, Tensor, float], Tensor]


def ours(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    return cauchy_schwarz_divergence(x, y, bandwidth=sigma, impl="tiled")


def log_mean_exp_dot(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Log of the mean of exp((a.b - 1) / sigma^2), the plain formula for unit rows."""
    return _combined(lambda a, b: ((a @ b.T - 1) / sigma**2).exp().mean().log(), x, y)


def log_mean_exp_cdist(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    return _combined(lambda a, b: (torch.cdist(a, b).square() * (-0.5 / sigma**2)).exp().mean().log(), x, y)


def logsumexp_dot(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    return _combined(lambda a, b: ((a @ b.T - 1) / sigma**2).flatten().logsumexp(0) - math.log(len(a) * len(b)), x, y)


def logsumexp_distance(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """The distance from norms and products, without centring."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        t = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        return (t.clamp_min(0) * (-0.5 / sigma**2)).flatten().logsumexp(0) - math.log(len(a) * len(b))

    return _combined(mean, x, y)


def _combined(mean: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


WAYS: dict[str, Divergence] = {
    "csaligner": ours,
    "logsumexp, distance": logsumexp_distance,
    "logsumexp, dot": logsumexp_dot,
    "log mean exp, dot": log_mean_exp_dot,
    "log mean exp, cdist": log_mean_exp_cdist,
}
UNIT_ROWS_ONLY = ("logsumexp, dot", "log mean exp, dot")


def clouds() -> dict[str, tuple[Tensor, Tensor, bool]]:
    """(x, y, unit rows) in float64."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(2, ROWS, DIM, generator=g, dtype=torch.float64)
    axis = torch.zeros(2, DIM, dtype=torch.float64)
    axis[0, 0] = axis[1, 1] = 1
    paired = normalize(noise[0], dim=1), normalize(noise[0] + 0.7 * noise[1], dim=1)
    near = [normalize(axis[k] + 0.05 * noise[k] / DIM**0.5 * 8, dim=1) for k in (0, 1)]
    far = normalize(-axis[0] + 0.05 * noise[1] / DIM**0.5 * 8, dim=1)
    offset = 100 * axis[0]
    return {
        "pairs": (*paired, True),
        "orthogonal clusters": (near[0], near[1], True),
        "antipodal clusters": (near[0], far, True),
        "clusters at distance 100 from the origin": (paired[0] + offset, paired[1] + offset, False),
        "clouds 1,000 apart": (paired[0], paired[1] + 10 * offset, False),
    }


def measure(way: Divergence, x: Tensor, y: Tensor, sigma: float, unit: bool) -> dict[str, float | None]:
    exact = x.double().requires_grad_()
    wanted = reference.cauchy_schwarz(exact, y.double(), Gaussian(sigma))
    (wanted_grad,) = torch.autograd.grad(wanted, exact)
    leaf = x.clone().requires_grad_()
    value = way(leaf, y, sigma)
    (grad,) = torch.autograd.grad(value, leaf)
    grad = grad.double()
    if unit:
        grad, wanted_grad = (g - (g * exact).sum(1, keepdim=True) * exact for g in (grad, wanted_grad))
    value_error = abs(value.item() - wanted.item()) / max(1.0, abs(wanted.item()))
    grad_error = ((grad - wanted_grad).abs().max() / wanted_grad.abs().max()).item()
    return {"value": _finite(value_error), "gradient": _finite(grad_error), "truth": wanted.item()}


def _finite(number: float) -> float | None:
    return float(f"{number:.2g}") if math.isfinite(number) else None


def run() -> dict[str, Any]:
    records = []
    for cloud, (x, y, unit) in clouds().items():
        for dtype_name, dtype in DTYPES.items():
            for sigma in SIGMAS:
                for name, way in WAYS.items():
                    if name in UNIT_ROWS_ONLY and not unit:
                        continue
                    case = {"cloud": cloud, "dtype": dtype_name, "sigma": sigma, "way": name}
                    try:
                        found = measure(way, x.to(dtype), y.to(dtype), sigma, unit)
                    except RuntimeError as error:  # cdist does not support half precision everywhere
                        found = {"value": None, "gradient": None}
                        case["error"] = str(error).splitlines()[0][:80]
                    records.append({**case, **found})
    return {"machine": describe(), "setting": {"rows": ROWS, "dim": DIM}, "records": records}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/numerics.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write(arguments.out, run())


if __name__ == "__main__":
    main()
