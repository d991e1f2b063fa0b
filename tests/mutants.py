"""Deliberate faults in the numerics, each of which must break a test: `make mutants` or `python tests/mutants.py`.

Each fault is applied to a copy of the sources, and the tests of the numerics run on the copy until one fails. Exit code
1 if a fault survives, or if its text is not found in the sources.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = (
    "ops",
    "divergences",
    "losses",
    "distributed",
    "training/test_gradcache.py",
    "contract/test_divergences.py",
    "adapters/test_mlp.py",
    "adapters/test_prior.py",
    "comparison/test_fits.py",
    "comparison/test_ranks.py",
)


@dataclass(frozen=True)
class Mutant:
    """Replaces the first `old` by `new` in src/csaligner/`file`."""

    what: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant("prior: no causal mask", "adapters/prior_network.py", "device=seen.device).tril()", "device=seen.device)"),
    Mutant("prior: padding attended to", "adapters/prior_network.py", "before & seen[:, None, :]", "before"),
    Mutant(
        "adapter: map of the start learned", "adapters/mlp.py", "map.requires_grad_(False)", "map.requires_grad_(True)"
    ),
    Mutant(
        "compare: objectives trained without validation rows",
        "comparison/compare.py",
        "transform = fit(method, fold.train_and_val",
        "transform = fit(method, fold.splits[0][0]",
    ),
    Mutant(
        "compare: baselines fitted without validation rows",
        "comparison/compare.py",
        "aligned = fit(method, fold.train_and_val",
        "aligned = fit(method, fold.splits[0][0]",
    ),
    Mutant("compare: a start of other pairs", "comparison/fits.py", "if key not in self.kept", "if not self.kept"),
    Mutant("ranks: a wide gap is good", "comparison/ranks.py", "(-1 if metric == GAP else 1)", "1"),
    Mutant("D_CS: sign of the cross term", "divergences/cauchy_schwarz.py", "- 2 * between", "+ 2 * between"),
    Mutant("D_CS: cross term once", "divergences/cauchy_schwarz.py", "- 2 * between", "- between"),
    Mutant("MMD: unbiased ignored", "divergences/mmd.py", "diagonal=not unbiased", "diagonal=True"),
    Mutant("energy: a within term lost", "divergences/energy.py", "- within_x - within_y", "- within_x"),
    Mutant("Hoelder: power of the density", "divergences/hoelder.py", "(m - 1) * densities", "m * densities"),
    Mutant("Bures: trace halved", "divergences/gaussian.py", "- 2 * nuclear", "- nuclear"),
    Mutant("KL: dimension forgotten", "divergences/gaussian.py", "traces - 2 * d", "traces"),
    Mutant(
        "Sinkhorn: not debiased",
        "divergences/sinkhorn.py",
        "- problem.softmin(\n        s.y",
        "- 0 * problem.softmin(\n        s.y",
    ),
    Mutant("kernel: sigma not squared", "ops/kernels.py", "slope = -0.5 / self.sigma**2", "slope = -0.5 / self.sigma"),
    Mutant("Laplacian: slope doubled", "ops/kernels.py", "-0.5 / self.sigma / root", "-1.0 / self.sigma / root"),
    Mutant("within: tiles counted once", "ops/tiled.py", "(2 if mirrored else 1)", "1"),
    Mutant("within: gradient halved", "ops/tiled.py", "2 * factor if self.within", "factor if self.within"),
    Mutant("within: diagonal kept", "ops/tiled.py", "if i == j and not diagonal:", "if False:"),
    Mutant("within: share of the diagonal", "ops/tiled.py", "1.0 - self.x.sum_of_squared_weights", "1.0"),
    Mutant(
        "tiles: column sums for rows", "ops/tiled.py", "mass_y[j] += r.sum(dim=0)", "mass_y[j] += r.sum(dim=0) * 1.001"
    ),
    Mutant("tiles: rescaling forgets the total", "ops/tiled.py", "held = [self.total, ", "held = ["),
    Mutant("tiles: weights of y ignored", "ops/tiles.py", "log_k.add_(y.log_weights[j])", "pass"),
    Mutant("InfoNCE: no weights 1/m", "ops/contrastive.py", "id_weights(ids).log()", "(ids >= 0).double().log()"),
    Mutant("InfoNCE: unpaired rows take part", "ops/reference.py", "(ids < 0, unpaired)", "(ids < 0, 1)"),
    Mutant(
        "InfoNCE: rows out of order", "ops/contrastive.py", "result[self.order] = rows", "result[:] = rows[self.order]"
    ),
    Mutant("InfoNCE: one direction alone", "ops/logsumexp.py", "(rows + columns) / 2", "rows"),
    Mutant("softmax: maximum not merged", "ops/logsumexp.py", "(top - raised).exp()", "1"),
    Mutant(
        "softmax: positives added",
        "ops/logsumexp.py",
        "rows.positive[i][:, None], value=-1)",
        "rows.positive[i][:, None])",
    ),
    Mutant("shared softmax: positives kept", "ops/logsumexp.py", "w.sub_(work.masked_fill_(tile.negative, 0))", "pass"),
    Mutant(
        "shared softmax: transposed factors",
        "ops/logsumexp.py",
        "addcmul_(a[i], columns.every[j])",
        "addcmul_(a[i], columns.every[j] * 0.999)",
    ),
    Mutant(
        "gradient: centre dropped", "ops/tiled_contrastive.py", "grad.addcmul_(mass[:, None], self.pair.centre)", "grad"
    ),
    Mutant("gradient: scale of the shift", "ops/tiled_contrastive.py", "* side.shift).sum()", ").sum()"),
    Mutant(
        "gradient: kernel part twice", "ops/kernel_sums.py", "w.add_(r, alpha=-times)", "w.add_(r, alpha=-2 * times)"
    ),
    Mutant(
        "gradient: kernel sums of columns", "ops/kernel_sums.py", "b[j], e.T @ a[i])", "b[j], e.T @ a[i], value=0.9)"
    ),
    Mutant("gradient: folded kernel added", "ops/kernel_sums.py", "a[i][:, None], value=-1)", "a[i][:, None])"),
    Mutant(
        "gradient: tiles kept out of order",
        "ops/tiled_contrastive.py",
        "iter(self.norms.kept)",
        "reversed(self.norms.kept)",
    ),
    Mutant(
        "folded: mirrored tiles not counted",
        "ops/gaussian_factors.py",
        "side.mass[j] += e.T",
        "side.mass[j] += 0 * e.T",
    ),
    Mutant(
        "folded: gradient halved",
        "ops/gaussian_factors.py",
        "self.x.gradient(2 / total), None",
        "self.x.gradient(1 / total), None",
    ),
    Mutant("folded: diagonal kept", "ops/gaussian_factors.py", "if i == j and not diagonal:", "if False:"),
    Mutant("folded: weights ignored", "ops/gaussian_factors.py", "log_a += sample.log_weights", "pass"),
    Mutant(
        "folded: norms forgotten",
        "ops/gaussian_factors.py",
        "sample.square_norms * (-0.5",
        "sample.square_norms * (-0.4",
    ),
    Mutant("mixed: kept without bfloat16 products", "ops/dispatch.py", "and not bfloat16_products()", "and False"),
    Mutant("mixed: raw features rounded", "ops/tiles.py", "if mixed and points.dtype != torch.float64", "if mixed"),
    Mutant("mixed: tiles with positives rounded", "ops/tiles.py", "is not None and not exact", "is not None"),
    Mutant("token: between as within", "ops/token.py", "a[v:] * (-factor / between)", "a[v:] * (factor / between)"),
    Mutant("siglip: bias at the prior", "losses/siglip.py", "_NEWTON_STEPS = 20", "_NEWTON_STEPS = 0"),
    Mutant("L2 of pairs: captions not averaged", "losses/paired.py", "weights[rows, columns] * distances", "distances"),
    Mutant("token: padding read", "ops/token.py", "slice(0, count) if leads", "slice(0, len(mask)) if leads"),
    Mutant("token: sum for mean", "ops/token.py", "return total / len(x)", "return total"),
    Mutant("token: maximum not put back", "ops/token.py", "(log_means[2] + top)", "log_means[2]"),
    Mutant("bandwidth: median not divided", "ops/bandwidth.py", "median / 2**0.5", "median"),
    Mutant("bandwidth: temperature for its root", "ops/bandwidth.py", "scale) ** -0.5", "scale) ** -1"),
    Mutant("autocast let in", "ops/tiles.py", "enabled=False", "enabled=torch.is_autocast_enabled(x.device.type)"),
    Mutant("double backward let through", "ops/tiles.py", "if torch.is_grad_enabled():", "if False:"),
    Mutant("objective: weights of a call ignored", "losses/objective.py", "{**self.terms, **_checked(", "{**_checked("),
    Mutant(
        "objective: unpaired rows dropped", "losses/objective.py", "id_weights(ids, unpaired)", "id_weights(ids, 1e-9)"
    ),
    Mutant("ranks: own gradients alone", "distributed/gather.py", "dist.all_reduce(total)", "pass"),
    Mutant(
        "ring: gradient of the caller's rank alone",
        "distributed/ring.py",
        "upstream = summed(torch",
        "upstream = (torch",
    ),
    Mutant("ring: pairs within counted once", "distributed/ring.py", "self._rescale(4 * ", "self._rescale(2 * "),
    Mutant(
        "ring: gradient of the scale not shared", "distributed/ring.py", "summed(self.grad_scale)", "self.grad_scale"
    ),
    Mutant("ring: weights of the own rows alone", "distributed/ring_blocks.py", "summed(a.sum())", "a.sum()"),
    Mutant(
        "feature cache: random state lost",
        "training/gradcache.py",
        "nt=False)",
        "nt=False, preserve_rng_state=False)",
    ),
    Mutant("modalities: divergences added up", "losses/modalities.py", "self.weight / len(pairs)", "self.weight"),
]


def survives(mutant: Mutant, folder: Path) -> str | None:
    """Return None if a test failed, as expected, else a description."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "src", folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    path = folder / "csaligner" / mutant.file
    text = path.read_text()
    if mutant.old not in text:
        return f"{mutant.old!r} is not in {mutant.file}: update this list"
    path.write_text(text.replace(mutant.old, mutant.new, 1))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    nearest_first = sorted(TESTS, key=lambda name: not mutant.file.startswith(name.partition("/")[0]))
    tests = [str(ROOT / "tests" / name) for name in nearest_first]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *tests], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 1:
        return None
    return "no test noticed" if done.returncode == 0 else f"pytest could not run: {done.stdout[-300:]}"


def main() -> int:
    wanted = sys.argv[1:]
    mutants = [m for m in MUTANTS if not wanted or any(word in m.what for word in wanted)]
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for mutant in mutants:
            problem = survives(mutant, Path(folder) / "src")
            failures += problem is not None
            line = f"caught    {mutant.what}" if problem is None else f"SURVIVED  {mutant.what}: {problem}"
            print(line, flush=True)
    print(f"{len(mutants) - failures} of {len(mutants)} faults caught")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
