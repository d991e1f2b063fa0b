"""Command line: exit codes, one-line errors, and the way from a table to a report."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from csaligner.cli import app
from csaligner.pipeline import evaluate_run
from csaligner.pipeline import train as run_train
from tests.support.commands import csaligner
from tests.support.features import make_store

FAST = ["epochs=4", "evaluate_every=2", "image_adapter.hidden=8", "text_adapter.hidden=8", "gate=false"]


class Sections(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.links += [v or "" for k, v in attrs if k in ("src", "href")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    store = make_store(folder / "store", 60, held_out=20)
    done = csaligner("train", "--train-data", str(store), "--out", str(folder / "run"), "-q", *FAST)
    assert done.returncode == 0, done.stderr
    assert "CS-Aligner" in done.stdout
    return folder


def test_train_writes_the_run_folder_of_the_conventions(finished: Path) -> None:
    run = finished / "run"
    for name in ("config.yaml", "run.json", "metrics.jsonl", "results.json", "report.html"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "checkpoints" / "latest" / "model.safetensors").exists()
    results = json.loads((run / "results.json").read_text())
    ours = next(r for r in results if r["method"] == "CS-Aligner")
    for key in ("image_to_text_recall@1", "mixed_ndcg@10", "modality_bias@10", "gap/cs", "gap/probe_accuracy"):
        assert isinstance(ours[key], float), key
    assert ours["n_images"] == 20
    assert ours["seed"] == 0
    page = Sections()
    page.feed((run / "report.html").read_text())
    assert not [link for link in page.links if link.startswith(("http:", "https:", "//"))]
    assert "<b>3" not in (run / "report.html").read_text()


def test_eval_prints_json_alone_on_standard_output(finished: Path) -> None:
    done = csaligner("eval", "--run", str(finished / "run"), "--split", "val", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert {r["split"] for r in results} == {"val"}
    assert next(r for r in results if r["method"] == "CS-Aligner")["n_images"] == 10


def test_results_and_report_of_a_sample_say_so(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    monkeypatch.setattr("csaligner.pipeline.MAX_IMAGES", 8)
    line = "sample of 8 of 20 images"
    assert {r.metrics["n_images"] for r in evaluate_run(run, "test")} == {8}
    assert all(line in row["provenance"]["sample"] for row in json.loads((run / "results.json").read_text()))
    assert line in (run / "report.html").read_text()
    assert {r.metrics["n_images"] for r in evaluate_run(run, "test", full=True)} == {20}
    assert "sample of" not in (run / "results.json").read_text()
    said = CliRunner().invoke(app, ["eval", "--run", str(run)])
    assert line in said.stderr
    assert "--full" in said.stderr


def test_a_run_folder_of_other_settings_is_refused_and_untouched(finished: Path) -> None:
    before = (finished / "run" / "config.yaml").read_bytes()
    words = ["--train-data", str(finished / "store"), "--out", str(finished / "run"), "-q", *FAST, "lr=0.5"]
    done = csaligner("train", *words)
    assert done.returncode == 1
    assert "(lr)" in done.stderr
    assert (finished / "run" / "config.yaml").read_bytes() == before


def test_a_store_of_other_encoders_is_refused_by_eval(finished: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", dims=(8, 7))
    done = csaligner("eval", "--run", str(finished / "run"), "--val-data", str(other))
    assert done.returncode == 1
    assert "test-text" in done.stderr


def test_eval_names_the_model_of_imported_features(tmp_path: Path) -> None:
    for number, model in enumerate(("first", "second")):
        for side in ("image", "text"):
            np.save(tmp_path / f"{side}.npy", np.random.default_rng(number).normal(size=(60, 6)).astype(np.float32))
        files = ("--image-features", tmp_path / "image.npy", "--text-features", tmp_path / "text.npy")
        names = ("--image-name", f"{model}-images", "--text-name", f"{model}-texts")
        assert csaligner("import", *files, *names, "--out", tmp_path / model).returncode == 0
    run = ("--train-data", tmp_path / "first", "--out", tmp_path / "run", "--epochs", "0", "-q")
    assert csaligner("train", *run).returncode == 0
    done = csaligner("eval", "--run", tmp_path / "run", "--val-data", tmp_path / "second")
    assert done.returncode == 1
    assert "import features of first-images" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "--train-data", "nowhere", "--out", "x"], 1, "nowhere"),
        (["train", "--train-data", "nowhere", "--out", "x", "objective.bandwidth=-1"], 1, "objective.bandwidth"),
        (["train", "--train-data", "nowhere", "--out", "x", "--lr", "nan"], 1, "lr: "),
        (["gap", "--image-features", "a.npy", "--text-features", "b.npy"], 1, "a.npy"),
        (["embed", "--train-data", "openmoij", "--out", "x"], 1, "'openmoji'"),
        (["eval", "--run", "nowhere", "--split", "tset"], 1, "'test'"),
        (["eval", "--run", "nowhere"], 1, "not a folder"),
        (["train"], 2, "'--train-data'"),
        (["trian"], 2, "'trian'"),
    ],
)
def test_wrong_use_is_one_line_with_the_right_exit_code(
    words: list[str], code: int, message: str, tmp_path: Path
) -> None:
    done = csaligner(*words, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_the_program_ends_with_the_exit_code_and_the_line_of_main(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "csaligner.cli", "eval", "--run", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not a folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_gap_measures_anybodys_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 5))
    np.save(tmp_path / "a.npy", points)
    np.save(tmp_path / "b.npy", points)
    words = ["gap", "--image-features", str(tmp_path / "a.npy"), "--text-features", str(tmp_path / "b.npy"), "--json"]
    done = csaligner(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gap/centroid"] == pytest.approx(0, abs=1e-9)
    assert found["gap/cs"] == pytest.approx(0, abs=1e-5)
    assert found["gap/paired_cosine"] == pytest.approx(1)
    points[0, 0] = np.inf
    np.save(tmp_path / "b.npy", points)
    assert "1 of 40" in csaligner(*words).stderr


def test_a_missing_column_lists_the_columns(tmp_path: Path) -> None:
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filepath", "title"], ["a.png", "a"]])
    done = csaligner("embed", "--train-data", str(tmp_path / "captions.csv"), "--out", str(tmp_path / "store"))
    assert done.returncode == 1
    assert "'image'" in done.stderr
    assert "'filepath', 'title'" in done.stderr
    assert not (tmp_path / "store").exists()


def test_ctrl_c_in_training_is_continued_by_the_same_call(finished: Path, tmp_path: Path) -> None:
    from csaligner.config import TrainConfig, load_config
    from csaligner.store.store import Store

    store, config = Store.open(finished / "store"), load_config(TrainConfig, None, FAST)

    def interrupt(step: int, total: int, values: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_train(store, config, tmp_path / "run", interrupt)
    again = run_train(store, config, tmp_path / "run").model.state_dict()
    whole = run_train(store, config, tmp_path / "whole").model.state_dict()
    assert all(torch.equal(again[k], whole[k]) for k in whole)
