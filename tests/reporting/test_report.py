"""Report page: complete, self-contained, escaped, and correct if parts are missing."""

from __future__ import annotations

import base64
import io
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csaligner.checks import InputError
from csaligner.reporting.report import (
    CosineSample,
    FeatureMap,
    GalleryQuery,
    Hit,
    MethodResult,
    ReportData,
    SplitCount,
    render_report,
    write_report,
)

EVIL = "<script>alert('x')</script> & \"q\""
VOID = {"meta", "img", "br", "link", "input", "hr"}
SECTIONS = ("results", "map", "cosines", "training", "gallery", "settings")


class Page(HTMLParser):
    """Strict HTML parser: tags are closed in order, ids are unique; collects elements for the tests."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        ids = [a["id"] for _, a in self.tags if "id" in a]
        assert len(ids) == len(set(ids)), "an id stands twice"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"closed but never opened: {tag}"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag]


def picture(size: int = 300, seed: int = 0, kind: str = "PNG", mode: str = "RGB") -> bytes:
    channels = len(mode)
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=kind)
    return buffer.getvalue()


def result(name: str, seed: int, mixed: float, gap: float) -> MethodResult:
    return MethodResult(
        name,
        seed,
        {
            "image_to_text_recall@1": 0.21 + 0.01 * seed,
            "text_to_image_recall@1": 0.20,
            "mean_mixed_ndcg@10": mixed + 0.001 * seed,
            "gap/centroid": gap + 0.001 * seed,
            "gap/paired_cosine": 0.5,
        },
        {"gap/centroid": [gap - 0.01, gap + 0.01]},
        [{"step": i, "loss/info_nce": 3.0 / i, "loss/cauchy_schwarz": 1.0 / i} for i in (1, 2, 3)],
        9.5,
    )


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def data() -> ReportData:
    hits = [
        Hit("image", EVIL, 0.9, True, picture()),
        Hit("text", EVIL, 0.8, False),
        Hit("image", "broken", 0.7, False, b"not a picture"),
    ]
    return ReportData(
        title=f"Run {EVIL}",
        results=[
            *(result("InfoNCE", s, 0.285, 0.291) for s in (0, 1)),
            *(result("CS-Aligner", s, 0.337, 0.037) for s in (0, 1)),
        ],
        dataset="OpenMoji",
        attribution=f"All emojis by OpenMoji {EVIL}",
        splits={"train": SplitCount(1500, 2500), "test": SplitCount(296, 431)},
        maps=[
            FeatureMap("before", unit(20, 9, 0), unit(30, 9, 1), np.arange(30) % 20),
            FeatureMap(EVIL, unit(20, 5, 2), unit(20, 5, 3)),
        ],
        cosines={EVIL: CosineSample(np.linspace(0.2, 0.8, 30), np.linspace(-0.2, 0.3, 30))},
        gallery=[
            GalleryQuery("text-to-image", {"CS-Aligner": hits[:1]}, query_text=EVIL),
            GalleryQuery("mixed", {"InfoNCE": hits, "CS-Aligner": hits}, query_image=picture(seed=1)),
        ],
        config={"objective": {"lambda": 0.5, "note": EVIL}, "empty": {}},
        versions={"torch": "2.13.0"},
        seed=0,
        commit="abc123",
    )


@pytest.fixture(scope="module")
def page(data: ReportData) -> Page:
    return Page(render_report(data))


def test_every_section_is_there_and_linked(page: Page) -> None:
    assert tuple(a["id"] for a in page.all("section")) == SECTIONS
    assert [a["href"] for a in page.all("a")] == [f"#{s}" for s in SECTIONS]
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == len(SECTIONS)


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "form")
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
        assert "http" not in attributes.get("style", "")
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_words_from_outside_are_shown_as_words(page: Page) -> None:
    assert page.text.count("<script>alert('x')</script> & \"q\"") >= 8
    assert not any(name.startswith("on") for _, a in page.tags for name in a)


def test_style_sheet_asks_for_nothing_and_knows_the_dark(data: ReportData) -> None:
    style = render_report(data).partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme:dark" in style
    assert style.count("{") == style.count("}")


def test_pictures_are_small_and_described(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 4  # two methods, one image each; one text-to-image hit; one query
    assert [a["alt"] for a in images] == [EVIL, "query image", EVIL, EVIL]
    for attributes in images:
        raw = base64.b64decode(attributes["src"].partition("base64,")[2])
        with Image.open(io.BytesIO(raw)) as thumbnail:
            assert max(thumbnail.size) <= 96
    for attributes in page.all("svg"):
        assert attributes.get("role") == "img" or attributes.get("aria-hidden") == "true"
        assert attributes.get("role") != "img" or attributes["aria-label"]


def test_hits_are_marked_by_modality_and_right_ones_framed(page: Page) -> None:
    classes = [a["class"] for a in page.all("li") if a.get("class", "").startswith("hit ")]
    assert classes == ["hit image right", *(["hit image right", "hit text", "hit image"] * 2)]
    assert page.text.count("\u2713") == 3
    assert re.search(r"relevant image\D* 1\b", page.text)  # the text-to-image query
    assert re.search(r"no relevant text\D* 3\b", page.text)  # the query is an image: matching images do not count


def test_facts_of_the_run_are_shown(page: Page) -> None:
    for fact in (
        "test: 296 images, 431 captions",
        "seeds 0, 1",
        "objective.lambda",
        "torch",
        "2.13.0",
        "abc123",
        "Images: All emojis by OpenMoji",
        "0.027 to 0.047",
        "gap/paired_cosine",
    ):
        assert fact in page.text, fact


def test_headline_and_bold_follow_the_numbers(data: ReportData) -> None:
    html = render_report(data)
    assert re.search("CS-Aligner[^.]*better[^.]*InfoNCE[^.]*mixed", html)
    bold = Page(html).all("strong")
    assert len(bold) == 3  # score, nDCG and gap; the recalls are equal
    swapped = replace(data, ours="InfoNCE", rival="CS-Aligner")
    text = Page(render_report(swapped)).text
    assert re.search("InfoNCE[^.]*worse[^.]*CS-Aligner", text)
    assert not re.search("InfoNCE[^.]*better", text)


def test_one_seed_without_intervals_makes_no_claim(data: ReportData) -> None:
    single = [replace(r, intervals={}) for r in data.results if r.seed == 0]
    page = Page(render_report(replace(data, results=single)))
    assert "decide" in page.text
    assert page.all("strong") == []
    assert "±" not in page.text


def test_bare_results_with_nan_give_a_whole_page() -> None:
    results = [MethodResult("CS-Aligner", 3, {"gap/cs": math.nan, "mixed_ndcg@10": 0.5, "fid": math.inf})]
    page = Page(render_report(ReportData("bare", results, rival=None)))
    assert [a["id"] for a in page.all("section")] == ["results"]
    assert "nan" not in page.text.lower()
    assert "No headline" in page.text


def test_nan_of_one_method_is_a_dash(data: ReportData) -> None:
    hole = [
        replace(r, metrics={**r.metrics, "gap/centroid": math.nan}) if r.name == "InfoNCE" else r for r in data.results
    ]
    page = Page(render_report(replace(data, results=hole)))
    assert "nan" not in page.text.lower().split()
    assert any(a.get("title") == "not measured" for a in page.all("td"))


def test_a_huge_gallery_stays_under_six_megabytes(data: ReportData, tmp_path: Path) -> None:
    hits = [Hit("image", "noise", 0.5, False, picture(96, seed)) for seed in range(20)]
    many = [GalleryQuery("text-to-image", {"a": hits, "b": hits}, query_text=f"q{i}") for i in range(60)]
    path = tmp_path / "report.html"
    write_report(replace(data, gallery=many), path)
    assert path.stat().st_size < 6_000_000
    assert "more queries" in path.read_text(encoding="utf-8")


def test_thumbnails_come_from_files_on_white(data: ReportData, tmp_path: Path) -> None:
    pytest.importorskip("csaligner.datasets.images.load")
    path = tmp_path / "clear.png"
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(path)
    missing = Hit("image", "gone", 0.1, False, tmp_path / "gone.png")
    query = GalleryQuery("text-to-image", {"a": [Hit("image", "clear", 0.5, True, path), missing]}, query_text="q")
    images = Page(render_report(replace(data, gallery=[query]))).all("img")
    assert [a["alt"] for a in images] == ["clear"]
    with Image.open(io.BytesIO(base64.b64decode(images[0]["src"].partition("base64,")[2]))) as thumbnail:
        assert thumbnail.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


def test_writing_is_atomic_and_repeatable(data: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(data, path)
    first = path.read_bytes()
    write_report(data, path)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_data_that_do_not_fit_are_named(data: ReportData) -> None:
    def fails(match: str, **changes: object) -> None:
        with pytest.raises(InputError, match=match) as caught:
            render_report(replace(data, **changes))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    fails("^results", results=[])
    fails("^ours.*'CS-Alinger'.*'CS-Aligner'", ours="CS-Alinger")
    fails("'CLIP'", rival="CLIP")
    fails("gallery query 0", gallery=[GalleryQuery("mixed", {})])
    fails("map 'm'.*text_to_image", maps=[FeatureMap("m", unit(2, 4, 0), unit(3, 4, 1))])
    fails("'m'", maps=[FeatureMap("m", unit(2, 4, 0), unit(2, 5, 1))])
    fails("NaN or infinity", maps=[FeatureMap("m", unit(2, 4, 0) * np.nan, unit(2, 4, 1))])


def test_importing_the_report_does_not_import_matplotlib() -> None:
    code = "import sys, csaligner.reporting.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_table_that_is_stacked_on_a_phone_is_still_a_table_for_a_screen_reader(data: ReportData) -> None:
    html = render_report(data)
    table = html[html.index('<table class="main"') : html.index("</table>")]
    found = {tag: set(re.findall(rf"<{tag}\b[^>]*?role=\"(\w+)\"", table)) for tag in ("table", "tr", "th", "td")}
    assert found == {"table": {"table"}, "tr": {"row"}, "th": {"columnheader", "rowheader"}, "td": {"cell"}}
    assert not re.search(r"<(tr|th|td|thead|tbody)\b(?![^>]*role=)", table)


def test_training_that_was_not_kept_leads_the_page(data: ReportData) -> None:
    untrained = replace(data.results[0], name="start", history=[], seconds=None)
    same = replace(untrained, name="CS-Aligner")
    bare = ReportData(title="Run", results=[untrained, same], ours="CS-Aligner", rival="start", rejected=True)
    page = Page(render_report(bare))
    assert "was not kept" in page.text
    assert "do not differ" not in page.text
    assert "no clear difference" not in page.text
