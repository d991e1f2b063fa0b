"""Diagnosis of two spaces without training: what is wrong between them, and what mends it.

Every statement of the verdict rests on a test at the 1 % level or on a 95 % interval:

- no_gap: D_CS is within what permuted labels give, and no map of the pairs finds more of the held-out pairs.
- shift: D_CS after centring is within what permuted labels give; or, with pairs, what is left changes no ranking: the
  bias of the query's space is within what permuted labels give, or within 0.05, and a map finds no more pairs.
- train: the spaces differ after centring, or a map of the pairs finds more held-out pairs than a shift.
- no_shared_meaning: neither the stored, the centred nor the mapped vectors find held-out pairs better than chance.
- unknown: the dimensions differ and there are no pairs to compare by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from csaligner.adapters.untrained import FEW_PAIRS
from csaligner.checks import InputError, check_positive

from .matching import MAPPED, Matching, match_pairs
from .permutation import (
    Bias,
    Tested,
    bias_tests,
    centred_divergence_test,
    divergence_test,
    permuted_labels,
    unit,
)
from .space import SAMPLE, Health, K, Pairing, Space, occurrences, pair_rows, sample, skewness

LEVEL = 0.01
PERMUTATIONS, CENTRED_PERMUTATIONS, CENTRED_ROWS = 999, 199, 500
SMALL_BIAS, SMALL_GAIN = 0.05, 0.01
MIN_ROWS = 20  # usable rows per space
NO_GAP, SHIFT, TRAIN, NO_MEANING, UNKNOWN = "no_gap", "shift", "train", "no_shared_meaning", "unknown"


@dataclass(frozen=True)
class Gap:
    """Measures of two spaces of one dimension. centroid: distance of the means of unit rows; centred_centroid: after
    centring, 0 but for the change of length. divergence: D_CS; bias: of the query's space at 10, by space; hubness: by
    direction, the skewness of how often a row is among the 10 nearest of a query of the other space. paired_cosine,
    unpaired_cosine: mean cosines of pairs and of other rows; NaN without pairs."""

    centroid: float
    divergence: Tested
    centred_divergence: Tested
    bias: Mapping[str, Bias]
    centred_bias: Mapping[str, Bias]
    hubness: Mapping[str, float]
    paired_cosine: float = float("nan")
    unpaired_cosine: float = float("nan")

    def record(self) -> dict[str, Any]:
        """Return the measures for JSON."""
        return {
            "gap/centroid": self.centroid,
            "gap/cs": self.divergence.record(),
            "centred_gap/cs": self.centred_divergence.record(),
            f"modality_bias@{K}": {name: bias.record() for name, bias in self.bias.items()},
            f"centred_modality_bias@{K}": {name: bias.record() for name, bias in self.centred_bias.items()},
            "hubness": dict(self.hubness),
            "gap/paired_cosine": self.paired_cosine,
            "gap/unpaired_cosine": self.unpaired_cosine,
        }


@dataclass(frozen=True)
class Diagnosis:
    """names: of the two spaces; health: of each; pairs: their number; gap: None for different dimensions; matching:
    None without enough pairs. means: of the usable rows of each space, which a shift subtracts."""

    names: tuple[str, str]
    health: tuple[Health, Health]
    pairs: int
    gap: Gap | None
    matching: Matching | None
    means: tuple[Tensor, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """One of no_gap, shift, train, no_shared_meaning and unknown; see the module."""
        gap, match = self.gap, self.matching
        if match is not None and not match.matches:
            return NO_MEANING
        if match is not None and match.low > SMALL_GAIN:
            return TRAIN
        if gap is None:
            return UNKNOWN if match is None else TRAIN
        if gap.divergence.p >= LEVEL:
            return NO_GAP
        if gap.centred_divergence.p >= LEVEL or (match is not None and self._small):
            return SHIFT
        return TRAIN

    @property
    def _small(self) -> bool:
        """Whether what centring leaves changes no ranking that can be shown, given that a map gains nothing: the bias
        of both kinds of query is within what permuted labels give, or its interval within SMALL_BIAS."""
        assert self.gap is not None
        biases = self.gap.centred_bias.values()
        return all(b.tested.p >= LEVEL or max(map(abs, b.interval)) <= SMALL_BIAS for b in biases)

    @property
    def sentence(self) -> str:
        """The verdict in one plain sentence with the figures that it rests on; before it, packed bits."""
        packed = [health.name for health in self.health if health.packed_bits]
        if not packed:
            return self._verdict()
        return f"{' and '.join(packed)}: looks like packed bits, unpack them first (np.unpackbits). {self._verdict()}"

    def _verdict(self) -> str:
        a, b = self.names
        what = f"{a} and {b}"
        match self.verdict:
            case "no_shared_meaning":
                assert self.matching is not None
                best = max(f.value for f in self.matching.found.values())
                return (
                    f"The two do not share meaning as paired: of {self.matching.test} held-out pairs of {what}, "
                    f"neither the stored vectors nor a map find more than chance ({best:.1%} against "
                    f"{self.matching.found[MAPPED].chance:.1%} in the first {K}); check the pairs."
                )
            case "unknown":
                return (
                    f"Cannot know: {what} have {self.health[0].dimensions} and {self.health[1].dimensions} dimensions "
                    f"and no pairs; give pairs, at least {FEW_PAIRS}."
                )
            case "no_gap":
                return (
                    f"No gap: {what} differ no more than two random parts of one set do ({self._test(False)})"
                    f"{self._open}."
                )
            case "shift":
                return f"A mean shift suffices: {what} differ ({self._test(False)}), {self._left}{self._open}."
        return self._train()

    @property
    def _left(self) -> str:
        assert self.gap is not None
        if self.gap.centred_divergence.p >= LEVEL or self.matching is None:
            return f"and centring removes it ({self._test(True)})"
        bias = max((b.tested.value for b in self.gap.centred_bias.values()), key=abs)
        m = self.matching
        return (
            f"and what is left after centring ({self._test(True)}) changes no ranking: bias@{K} {bias:+.2f}, and a map "
            f"finds {100 * m.gain:+.0f} points ({100 * m.low:+.0f} to {100 * m.high:+.0f}) more pairs"
        )

    def _train(self) -> str:
        what = " and ".join(self.names)
        if self.matching is None:
            need = f"train on your {self.pairs} pairs" if self.pairs else f"pairs are needed, at least {FEW_PAIRS}"
            return f"A mean shift does not suffice: {what} still differ after centring ({self._test(True)}); {need}."
        m = self.matching
        found = ", ".join(f"{name} {100 * f.value:.0f} %" for name, f in m.found.items())
        if self.gap is None:
            return (
                f"Dimensions differ, so {what} need a map: train on your {self.pairs} pairs (held-out pairs in the "
                f"first {K}: {found}, chance {100 * m.found[MAPPED].chance:.0f} %)."
            )
        if m.low > SMALL_GAIN:
            why = (
                f"a map finds {100 * m.gain:.0f} points ({100 * m.low:.0f} to {100 * m.high:.0f}) more held-out "
                f"pairs in the first {K} ({found})"
            )
        else:
            bias = max((b.tested.value for b in self.gap.centred_bias.values()), key=abs)
            why = f"{what} still differ after centring ({self._test(True)}; bias@{K} {bias:+.2f})"
        return f"A mean shift does not suffice: {why}; train on your {self.pairs} pairs."

    def _test(self, centred: bool) -> str:
        assert self.gap is not None
        tested = self.gap.centred_divergence if centred else self.gap.divergence
        return f"D_CS {tested.value:.3g}, permutation p = {tested.p:.3g}"

    @property
    def _open(self) -> str:
        return "" if self.matching else "; whether their items match cannot be known without pairs"

    def record(self) -> dict[str, Any]:
        """Return the diagnosis for JSON."""
        return {
            "spaces": list(self.names),
            "health": [asdict(h) for h in self.health],
            "pairs": self.pairs,
            "gap": self.gap.record() if self.gap else None,
            f"held_out_recall@{K}": self.matching.record() if self.matching else None,
            "settings": dict(self.settings),
            "verdict": self.verdict,
            "sentence": self.sentence,
        }


def diagnose(
    first: Space, second: Space, *, pairing: Pairing = "auto", bandwidth: float = 0.5, seed: int = 0
) -> Diagnosis:
    """Diagnose two spaces without training.

    pairing: how rows pair (space.pair_rows). bandwidth: sigma of D_CS, on unit vectors. Rows that are zero or not
    finite are counted and ignored. At most 2,000 rows per space, sampled with `seed`, are used for D_CS and the bias,
    and 500 for D_CS after centring. Raises InputError with fewer than 20 usable rows and for equal names.
    """
    if first.name == second.name:
        raise InputError(f"names: both spaces are named {first.name!r}; give two names")
    check_positive("bandwidth", bandwidth)
    health = Health.of(first, seed), Health.of(second, seed)
    for space in (first, second):
        if int(space.usable.sum()) < MIN_ROWS:
            raise InputError(f"{space.name}: {int(space.usable.sum())} usable rows, wanted at least {MIN_ROWS}")
    pairs = pair_rows(first, second, pairing)
    paired = None if pairs is None else (first.rows[pairs[0]], second.rows[pairs[1]])
    kept = first.rows[first.usable], second.rows[second.usable]
    means = kept[0].double().mean(dim=0), kept[1].double().mean(dim=0)
    gap = None
    if first.rows.shape[1] == second.rows.shape[1]:
        gap = _gap(
            (first.name, second.name), paired if _enough(paired) else kept, means, bandwidth, seed, _enough(paired)
        )
    matching = None if paired is None else match_pairs(*paired, seed=seed)
    settings = {"bandwidth": bandwidth, "seed": seed, "pairing": pairing, "level": LEVEL}
    number = 0 if paired is None else len(paired[0])
    return Diagnosis((first.name, second.name), health, number, gap, matching, means, settings)


def _enough(paired: tuple[Tensor, Tensor] | None) -> bool:
    return paired is not None and len(paired[0]) >= MIN_ROWS


def _gap(
    names: tuple[str, str],
    rows: tuple[Tensor, Tensor] | None,
    means: tuple[Tensor, Tensor],
    bandwidth: float,
    seed: int,
    paired: bool,
) -> Gap:
    assert rows is not None
    some = _sampled(rows, SAMPLE, seed, paired)
    x, y = unit(some[0]), unit(some[1])
    labels = permuted_labels(len(x), len(y), PERMUTATIONS, seed, paired=paired)
    few = _sampled(rows, CENTRED_ROWS, seed + 1, paired)
    rest = unit(few[0], means[0]), unit(few[1], means[1])
    centred = unit(some[0], means[0]), unit(some[1], means[1])
    few_labels = permuted_labels(len(rest[0]), len(rest[1]), CENTRED_PERMUTATIONS, seed, paired=paired)
    cosines = {}
    if paired:
        own, n = float((x * y).sum(dim=1).mean()), len(x)
        cosines = {"paired_cosine": own, "unpaired_cosine": (float(x.mean(0) @ y.mean(0)) * n - own) / (n - 1)}
    return Gap(
        centroid=float((x.double().mean(dim=0) - y.double().mean(dim=0)).norm()),
        divergence=divergence_test(x, y, labels, bandwidth),
        centred_divergence=centred_divergence_test(*rest, few_labels, bandwidth),
        bias=dict(zip(names, bias_tests(x, y, labels, K, seed), strict=True)),
        centred_bias=dict(zip(names, bias_tests(*centred, labels, K, seed), strict=True)),
        hubness={
            f"{names[0]} -> {names[1]}": skewness(occurrences(x, y)),
            f"{names[1]} -> {names[0]}": skewness(occurrences(y, x)),
        },
        **cosines,
    )


def _sampled(rows: tuple[Tensor, Tensor], most: int, seed: int, paired: bool) -> tuple[Tensor, Tensor]:
    x, y = rows
    first = sample(len(x), most, seed)
    return x[first], y[first if paired else sample(len(y), most, seed)]
