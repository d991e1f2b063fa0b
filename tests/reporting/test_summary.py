"""Summary of several runs: means, significance and headline."""

from __future__ import annotations

import math
import re

import pytest

from csaligner.checks import InputError
from csaligner.reporting.record import MethodResult
from csaligner.reporting.summary import describe, format_spread, format_value, headline, summarise

MIXED, GAP = "mean_mixed_ndcg@10", "gap/centroid"


def runs(name: str, values: list[float], key: str = MIXED, half: float | None = None) -> list[MethodResult]:
    """Return one run per value; with `half`, intervals of value +- half."""
    return [
        MethodResult(name, seed, {key: v}, {} if half is None else {key: [v - half, v + half]})
        for seed, v in enumerate(values)
    ]


def test_mean_and_sample_sd_over_seeds() -> None:
    cell = summarise(runs("a", [0.1, 0.2, 0.6])).cell("a", MIXED)
    assert cell is not None
    assert cell.mean == pytest.approx(0.3)
    assert cell.sd == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))


def test_difference_counts_only_beyond_the_spread_of_a_difference() -> None:
    # sd is 0.1 on both sides: the spread of a difference is sqrt(2) * 0.1 = 0.1414...
    base = runs("b", [0.2, 0.3, 0.4])
    assert summarise(runs("a", [0.34, 0.44, 0.54]) + base).verdict("a", "b", MIXED) == "level"
    assert summarise(runs("a", [0.35, 0.45, 0.55]) + base).verdict("a", "b", MIXED) == "better"
    assert summarise(runs("a", [0.05, 0.15, 0.25]) + base).verdict("a", "b", MIXED) == "worse"


@pytest.mark.parametrize(
    ("key", "ours", "other"),
    [
        ("gap/centroid", 0.03, 0.3),
        ("gap/cs", 0.1, 1.0),
        ("modality_bias@10", -0.02, 0.3),
        ("gap/probe_accuracy", 0.46, 0.9),
        ("text_to_image_median_rank", 2.0, 9.0),
        ("gap/paired_cosine", 0.6, 0.3),
        ("uniformity/image", -3.0, -2.0),
    ],
)
def test_direction_of_each_metric(key: str, ours: float, other: float) -> None:
    summary = summarise(runs("a", [ours], key, half=0.001) + runs("b", [other], key, half=0.001))
    assert summary.verdict("a", "b", key) == "better"
    assert summary.verdict("b", "a", key) == "worse"
    assert summary.best(key) == "a"


def test_probe_below_one_half_is_as_blind_as_one_half() -> None:
    key = "gap/probe_accuracy"
    summary = summarise(runs("a", [0.40, 0.42], key) + runs("b", [0.48, 0.49], key))
    assert summary.verdict("a", "b", key) == "level"


def test_one_seed_is_judged_by_its_intervals() -> None:
    def verdict(half: float | None) -> str:
        return summarise(runs("a", [0.4], half=half) + runs("b", [0.3], half=half)).verdict("a", "b", MIXED)

    assert verdict(0.04) == "better"
    assert verdict(0.06) == "level"
    assert verdict(None) == "unknown"


def test_two_methods_without_any_randomness_are_judged_by_their_intervals() -> None:
    summary = summarise(runs("a", [0.4, 0.4], half=0.2) + runs("b", [0.3, 0.3], half=0.2))
    assert summary.verdict("a", "b", MIXED) == "level"


def test_best_needs_a_win_over_every_other_method() -> None:
    third = runs("c", [0.1, 0.11])
    assert summarise(runs("a", [0.5, 0.51]) + runs("b", [0.3, 0.31]) + third).best(MIXED) == "a"
    assert summarise(runs("a", [0.5, 0.51]) + runs("b", [0.5, 0.52]) + third).best(MIXED) is None
    assert summarise(third).best(MIXED) is None


def test_mean_recall_is_the_mean_of_both_directions() -> None:
    metrics = {"image_to_text_recall@1": 0.2, "text_to_image_recall@1": 0.3}
    intervals = {"image_to_text_recall@1": [0.1, 0.3], "text_to_image_recall@1": [0.2, 0.5]}
    cell = summarise([MethodResult("a", 0, metrics, intervals)]).cell("a", "mean_recall@1")
    assert cell is not None
    assert (cell.mean, cell.low, cell.high) == pytest.approx((0.25, 0.15, 0.4))


def test_values_that_are_not_finite_count_as_not_measured() -> None:
    summary = summarise(runs("a", [math.nan, 0.2]) + runs("b", [math.inf]))
    cell = summary.cell("a", MIXED)
    assert cell is not None
    assert cell.values == (0.2,)
    assert summary.cell("b", MIXED) is None
    assert summary.verdict("a", "b", MIXED) == "unknown"


def test_headline_says_so_when_the_rival_wins() -> None:
    summary = summarise(runs("CS-Aligner", [0.30, 0.31]) + runs("InfoNCE", [0.50, 0.51]))
    text = " ".join(headline(summary, "CS-Aligner", "InfoNCE"))
    assert re.match("CS-Aligner.*worse.*InfoNCE", text)
    assert "better" not in text


def test_headline_claims_no_win_within_the_spread() -> None:
    summary = summarise(runs("CS-Aligner", [0.30, 0.52]) + runs("InfoNCE", [0.29, 0.50]))
    text = " ".join(headline(summary, "CS-Aligner", "InfoNCE"))
    assert "do not differ" in text
    assert "better" not in text
    assert "worse" not in text


def test_headline_quotes_the_numbers_of_a_win() -> None:
    summary = summarise(runs("CS-Aligner", [0.40, 0.41]) + runs("InfoNCE", [0.30, 0.31]))
    (text,) = headline(summary, "CS-Aligner", "InfoNCE")
    assert re.search("CS-Aligner.*better.*InfoNCE", text)
    assert re.search("40.5\u00a0%.*30.5\u00a0%", text)


def test_headline_names_a_free_baseline_that_is_ahead() -> None:
    results = runs("CS-Aligner", [0.10, 0.11], GAP) + runs("InfoNCE", [0.30, 0.31], GAP)
    summary = summarise(results + runs("mean-centring", [0.01, 0.01], GAP))
    text = " ".join(headline(summary, "CS-Aligner", "InfoNCE"))
    assert re.search("CS-Aligner.*better.*InfoNCE", text)
    assert re.search("mean-centring.*better.*CS-Aligner.*gap", text)


def test_headline_without_rival_intervals_or_metrics() -> None:
    one = summarise(runs("a", [0.4]) + runs("b", [0.3]))
    assert "decide" in " ".join(headline(one, "a", "b"))
    assert "better" not in " ".join(headline(one, "a", "b"))
    assert "No other" in " ".join(headline(summarise(runs("a", [0.4])), "a", None))
    assert "No other" not in " ".join(headline(one, "a", None))
    (text,) = headline(summarise(runs("a", [1.0], "other")), "a", None)
    assert "metric" in text


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("text_to_image_recall@1", 0.2046, "20.5"),
        ("modality_bias@10", 0.121, "+12.1"),
        ("modality_bias@10", -0.0001, "0.0"),
        ("gap/centroid", 0.0374, "0.037"),
        ("gap/centroid", 0.0000123, "1.23e\u221205"),
        ("n_images", 296, "296"),
        ("uniformity/text", -2.5, "\u22122.500"),
    ],
)
def test_format_value(key: str, value: float, wanted: str) -> None:
    assert format_value(describe(key), value) == wanted


def test_spread_has_the_decimals_of_its_mean() -> None:
    assert format_spread(describe(GAP), 0.1, 0.0) == "0.000"
    assert format_spread(describe(MIXED), 0.4, 0.0123) == "1.2"


def test_no_results_and_doubles_are_errors() -> None:
    with pytest.raises(InputError, match="none"):
        summarise([])
    with pytest.raises(InputError, match=r"'a'.*seed 0"):
        summarise(runs("a", [0.1]) + runs("a", [0.2]))
