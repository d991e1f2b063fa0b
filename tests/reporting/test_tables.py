"""Terminal table and results.json."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from csaligner.checks import InputError
from csaligner.reporting.record import MethodResult
from csaligner.reporting.tables import print_table, read_results_json, write_results_json

RESULTS = [
    MethodResult(
        name,
        seed,
        {
            "image_to_text_recall@1": recall + 0.01 * seed,
            "text_to_image_recall@1": recall,
            "gap/centroid": gap + 0.001 * seed,
            "n_images": 296,
        },
        {"gap/centroid": [gap - 0.01, gap + 0.01]},
        seconds=12.0,
    )
    for name, recall, gap in (("InfoNCE", 0.2, 0.291), ("CS-Aligner", 0.2, 0.037))
    for seed in (0, 1)
]


def printed(results: list[MethodResult], width: int = 100, color: bool = False) -> str:
    stream = io.StringIO()
    print_table(results, Console(file=stream, width=width, force_terminal=color))
    return stream.getvalue()


def test_table_shows_means_spreads_and_the_rule() -> None:
    text = printed(RESULTS)
    assert "InfoNCE" in text
    assert "CS-Aligner" in text
    assert "20.2" in text  # mean of 20.0 and 20.5
    assert "0.291" in text or "0.292" in text
    assert "±0.001" in text
    assert "12 s" in text
    assert "mean ± sd over 2 seeds" in text
    assert "Probe" not in text  # not measured


def test_two_rows_of_the_untrained_alignment_are_explained() -> None:
    stream = io.StringIO()
    same = [MethodResult(name, 0, {"gap/centroid": 0.1}) for name in ("start", "CS-Aligner")]
    print_table(same, Console(file=stream, width=200), equal=("start", "CS-Aligner"))
    assert "start and CS-Aligner are both the untrained alignment" in stream.getvalue()
    assert "significantly" not in stream.getvalue()


def test_only_a_clear_best_is_bold() -> None:
    bold = "\x1b[1m"
    row = next(line for line in printed(RESULTS, color=True).splitlines() if "CS-Aligner" in line)
    assert row.count(bold) == 1
    assert row.index(bold) < row.index("0.037")
    same = [MethodResult(r.name, r.seed, {"gap/centroid": 0.1 + 0.01 * r.seed}) for r in RESULTS]
    body = printed(same, color=True).splitlines()[3:]
    assert not any(bold in line for line in body if "InfoNCE" in line or "CS-Aligner" in line)


def test_numbers_stay_whole_on_80_columns_and_markup_is_text() -> None:
    long = [MethodResult("[bold]" + "a very long name " * 6, r.seed, r.metrics) for r in RESULTS[:2]]
    text = printed(long, width=80)
    assert "[bold]" in text.replace("\n", "")
    assert "0.292" in text or "0.291" in text
    assert "\u2026" not in text


def test_json_has_one_flat_object_a_method_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results_json(RESULTS, path, provenance={"commit": "abc"})
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [(r["method"], r["seed"]) for r in rows] == [(r.name, r.seed) for r in RESULTS]
    assert rows[3]["gap/centroid"] == pytest.approx(0.038)
    assert rows[0]["n_images"] == 296
    assert rows[0]["split"] == "test"
    assert rows[0]["provenance"] == {"commit": "abc"}


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results_json(RESULTS, path)
    assert read_results_json(path) == RESULTS


def test_json_holds_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results_json([MethodResult("a", 0, {"x": math.nan, "y": math.inf}, {"x": [math.nan, 1.0]})], path)
    assert "NaN" not in path.read_text(encoding="utf-8")
    assert "Infinity" not in path.read_text(encoding="utf-8")
    (back,) = read_results_json(path)
    assert math.isnan(back.metrics["x"])
    assert math.isnan(back.intervals["x"][0])
    assert back.seconds is None


def test_a_metric_may_not_hide_a_field(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'seed'"):
        write_results_json([MethodResult("a", 0, {"seed": 1.0})], tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["not json", "3", '{"a": 1}', '[{"seed": 1}]'])
def test_reading_another_file_is_a_one_line_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"other\.json.*list") as caught:
        read_results_json(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"missing\.json"):
        read_results_json(tmp_path / "missing.json")
