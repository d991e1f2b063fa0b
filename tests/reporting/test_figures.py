"""Maps and histograms of the report."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from csaligner.checks import InputError
from csaligner.reporting import figures
from csaligner.reporting.record import CosineSample, FeatureMap, MethodResult


def unit(rows: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    x[:, 0] += shift
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_projection_agrees_with_scikit_learn() -> None:
    image, text = unit(40, 7, 0), unit(60, 7, 1, shift=3.0)
    p = figures.project(FeatureMap("a", image, text, np.arange(60) % 40))
    union = np.concatenate([image, text])
    pca = PCA(2).fit(union)
    ours, theirs = np.concatenate([p.image, p.text]), pca.transform(union)
    for axis in (0, 1):
        sign = np.sign(ours[:, axis] @ theirs[:, axis])
        np.testing.assert_allclose(ours[:, axis], sign * theirs[:, axis], atol=1e-10)
    assert p.share == pytest.approx(pca.explained_variance_ratio_.sum())
    assert p.gap == pytest.approx(float(np.linalg.norm(image.mean(0) - text.mean(0))))


@pytest.mark.parametrize(("rows", "dim"), [(1, 5), (4, 1), (3, 9)])
def test_projection_of_degenerate_clouds_is_finite(rows: int, dim: int) -> None:
    same = np.ones((rows, dim)) / np.sqrt(dim)
    p = figures.project(FeatureMap("a", same, same))
    assert p.image.shape == (rows, 2)
    assert np.isfinite(p.image).all()
    assert np.abs(p.image).max() < 1e-6
    assert np.isfinite(p.share)
    assert p.gap == 0
    assert "nan" not in figures.map_panels([p], "m")[0].lower()


def test_maps_share_one_scale() -> None:
    wide = figures.project(FeatureMap("wide", unit(30, 4, 0), unit(30, 4, 1)))
    small = figures.project(FeatureMap("small", 0.1 * unit(30, 4, 0), 0.1 * unit(30, 4, 1)))

    def extent(svg: str) -> float:
        points = re.findall(r'<use href="#[^"]*" x="([\d.]+)" y="[\d.]+" style="fill: var\(--image\)', svg)
        numbers = [float(x) for x in points]
        return max(numbers) - min(numbers)

    big, little = figures.map_panels([wide, small], "m")
    assert extent(little) == pytest.approx(0.1 * extent(big), rel=0.02)


def test_panels_follow_the_theme_and_have_ids_of_their_own() -> None:
    p = figures.project(FeatureMap("a <b>", unit(30, 4, 0), unit(30, 4, 1)))
    first, second = figures.map_panels([p, p], "m")
    assert not re.search(r"#[0-9a-f]{6}\b(?!\")", re.sub(r'(href="|url\()#[^")]*', "", first))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= own
    assert 'aria-label="a &lt;b&gt;' in first
    assert "http" not in first


def test_panels_are_the_same_every_time() -> None:
    sample = {"a": CosineSample(unit(5, 4, 0), unit(9, 4, 1))}
    assert figures.cosine_panels(sample, "c") == figures.cosine_panels(sample, "c")


def test_cosines_ignore_nan_and_leave_out_empty_methods() -> None:
    nan = np.array([np.nan, 0.5, 0.7])
    panels = figures.cosine_panels(
        {"a": CosineSample(nan, np.array([0.1])), "b": CosineSample(np.array([np.nan]), nan)}, "c"
    )
    assert list(panels) == ["a"]
    assert "mean 0.600" in panels["a"]


VALS = ("val/a", "val/b", "val/c", "val/d", "val/e")


def test_curves_put_the_loss_terms_first_and_skip_the_total() -> None:
    row = {"step": 1, "val/gap": 0.1, "loss/token": 1.0, "loss/total": 3.0, "loss/cauchy_schwarz": 1.0}
    result = MethodResult("a", 0, {}, history=[row, {"step": 2, "loss/info_nce": 2.0}, {"step": 3, "lr": 1.0}])
    assert figures.curve_keys([result]) == ["loss/info_nce", "loss/cauchy_schwarz", "loss/token", "val/gap"]
    many = MethodResult(
        "b", 0, {}, history=[{"step": 1, **{f"val/{c}": 0.1 for c in "abcdef"}, "val/mean_recall@1": 0.1}]
    )
    assert figures.curve_keys([many]) == ["val/mean_recall@1", "val/a", "val/b", "val/c"]
    panels = figures.curve_panels([result], {"a": 0}, "t")
    assert list(panels) == figures.curve_keys([result])


def test_tick_labels_keep_all_their_digits() -> None:
    history = [{"step": i, "loss/info_nce": 0.5 + 0.0001 * i} for i in range(9)]
    svg = figures.curve_panels([MethodResult("a", 0, {}, history=history)], {"a": 0}, "t")["loss/info_nce"]
    labels = re.findall(r">([\d.]+)</text>", svg)
    assert "0.5002" in labels
    assert len(set(labels)) == len(labels)


def test_a_curve_of_nan_alone_is_left_out() -> None:
    result = MethodResult("a", 0, {}, history=[{"step": 1, "loss/info_nce": float("nan")}])
    assert figures.curve_panels([result], {"a": 0}, "t") == {}


def test_before_after_png_has_its_size_and_the_two_colours(tmp_path: Path) -> None:
    maps = [
        FeatureMap("before $\\bad{", unit(1500, 16, 0, 4.0), unit(1500, 16, 1, -4.0)),
        FeatureMap("after", unit(1500, 8, 2), unit(1500, 8, 3)),
    ]
    path = tmp_path / "map.png"
    figures.figure_before_after(maps, path)
    assert path.stat().st_size < 150_000
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]
    with Image.open(path) as opened:
        picture = np.asarray(opened.convert("RGB")).astype(int)
    assert picture.shape == (500, 1200, 3)
    blue = picture[..., 2] - picture[..., 0] > 60
    orange = picture[..., 0] - picture[..., 2] > 60
    columns = np.arange(1200)
    before_gap = abs(
        (blue[:, :600].sum(0) @ columns[:600]) / blue[:, :600].sum()
        - (orange[:, :600].sum(0) @ columns[:600]) / orange[:, :600].sum()
    )
    assert before_gap > 100  # two distant groups on the left


def test_before_after_needs_two_maps(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two"):
        figures.figure_before_after([FeatureMap("a", unit(3, 4, 0), unit(3, 4, 1))], tmp_path / "x.png")
