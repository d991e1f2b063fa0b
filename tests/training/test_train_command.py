"""`csaligner train`: several processes, unpaired stores and checkpoints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from csaligner import CSAligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig, load_config
from csaligner.locks import only_writer
from csaligner.pipeline import train
from csaligner.run_folder import RECORD, claim_run
from csaligner.store.store import Store
from csaligner.training.trainer import METRICS, RunOptions
from csaligner.training.training_data import TrainingData
from tests.support.commands import csaligner
from tests.support.features import make_store

HIDDEN = ["image_adapter.hidden=8", "text_adapter.hidden=8"]
FAST = ["epochs=4", "evaluate_every=2", *HIDDEN, "batch_size=16", "gate=false"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "csaligner.cli"]


def on_two_processes(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *TWO, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    make_store(folder / "pairs", 45)
    make_store(folder / "others", n=60, seed=1)
    make_store(folder / "foreign", 45, revision="2", seed=2)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "latest" / "model.safetensors")


def test_two_processes_train_what_one_does(stores: Path, tmp_path: Path) -> None:
    pairs, others = Store.open(stores / "pairs"), Store.open(stores / "others")
    data = TrainingData(pairs, others, (others,), (others, pairs))
    train(data, load_config(TrainConfig, None, [*FAST, "unpaired.texts=7"]), tmp_path / "one")
    words: list[object] = ["--unpaired-images", others.path]
    for store in data.unpaired_texts:
        words += ["--unpaired-texts", store.path]
    words += ["--train-data", pairs.path, "--val-data", others.path, "-q", "--workers", "0", "--resume", "latest"]
    two = on_two_processes("train", *words, "--out", tmp_path / "two", *FAST, "unpaired.texts=7")
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("CS-Aligner") == 1  # only one process prints
    ours, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert max(float((ours[k] - wanted[k]).abs().max()) for k in wanted) < 1e-4
    lines = [(tmp_path / run / METRICS).read_text().splitlines() for run in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 2
    for a, b in zip(*map(loads, lines), strict=True):
        assert a.keys() == b.keys()
        assert a["val/score"] == pytest.approx(b["val/score"], abs=0.02)
    assert (tmp_path / "one" / "config.yaml").read_text() == (tmp_path / "two" / "config.yaml").read_text()
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["processes"] == 2
    assert [Path(entry["store"]).name for entry in record["unpaired_texts"]] == ["others", "pairs"]
    config = load_config(TrainConfig, None, [*FAST, "unpaired.texts=7"])
    with pytest.raises(InputError, match=r"\bval\b"):
        claim_run(tmp_path / "two", config, pairs, TrainingData(pairs).record())


def loads(lines: list[str]) -> list[dict[str, float]]:
    """Parse strict JSON, without NaN."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_stores_of_other_encoders_are_refused_together(stores: Path, tmp_path: Path) -> None:
    pairs, foreign = Store.open(stores / "pairs"), Store.open(stores / "foreign")
    train(TrainingData(pairs, unpaired_images=(foreign,)), load_config(TrainConfig, None, FAST), tmp_path / "same-side")
    for data in (TrainingData(pairs, unpaired_texts=(foreign,)), TrainingData(pairs, val=foreign)):
        with pytest.raises(InputError, match=r"text features.*foreign"):
            train(data, load_config(TrainConfig, None, FAST), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_run_may_start_from_a_checkpoint_elsewhere(stores: Path, tmp_path: Path) -> None:
    store = Store.open(stores / "pairs")
    train(store, load_config(TrainConfig, None, FAST), tmp_path / "short")
    longer = load_config(TrainConfig, None, [*FAST, "epochs=6"])
    options = RunOptions(workers=0, resume=tmp_path / "short" / "checkpoints" / "latest")
    steps: list[int] = []
    train(store, longer, tmp_path / "longer", lambda step, total, values: steps.append(step), options)
    assert steps == [9, 10, 11, 12]
    logged = loads((tmp_path / "longer" / METRICS).read_text().splitlines())
    assert [row["step"] for row in logged] == [4, 8, 12]
    with pytest.raises(InputError, match=r"^checkpoint"):
        train(store, longer, tmp_path / "lost", options=RunOptions(resume=tmp_path / "nowhere"))
    options = RunOptions(resume=tmp_path / "longer" / "checkpoints" / "latest")
    with pytest.raises(InputError, match=r"12.*8"):
        train(store, load_config(TrainConfig, None, FAST), tmp_path / "shorter", options=options)


def test_a_second_writer_of_a_run_is_refused_before_it_writes_anything(stores: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with only_writer(out), pytest.raises(InputError, match="written by another process"):
        train(Store.open(stores / "pairs"), load_config(TrainConfig, None, FAST), out)
    assert not out.exists()


def test_a_tracker_that_is_not_there_is_one_line(stores: Path, tmp_path: Path) -> None:
    words = ["train", "--train-data", stores / "pairs", "--out", tmp_path / "run", "-q", *FAST]
    unknown = csaligner(*words, "--report-to", "tensorbord")
    assert re.fullmatch("csaligner: report_to: 'tensorbord'.*'tensorboard'.*\n", unknown.stderr)
    assert unknown.returncode == 1


def test_no_epochs_write_the_untrained_baseline(stores: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--train-data",
        stores / "pairs",
        "--out",
        tmp_path / "run",
        "-q",
        *HIDDEN,
        "evaluate_every=2",
        "--epochs",
        "0",
    ]
    done = csaligner(*words, "--weight", "2", "--bandwidth", "median", "--logit-scale", "20")
    assert done.returncode == 0, done.stderr
    config = load_config(TrainConfig, tmp_path / "run" / "config.yaml")
    assert (config.epochs, config.objective.terms["cauchy_schwarz"], config.objective.bandwidth) == (0, 2.0, "median")
    results = {r["method"]: r for r in json.loads((tmp_path / "run" / "results.json").read_text())}
    ours, start = results["CS-Aligner"], results["closed-form start"]
    assert "untrained alignment" in " ".join(done.stdout.split())
    same = [name for name, value in ours.items() if isinstance(value, float) and "seconds" not in name]
    assert {name: ours[name] for name in same} == {name: start[name] for name in same}


def test_the_implementation_is_an_option(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    words = ("train", "--train-data", stores / "pairs", "--out", tmp_path / "run", "--impl", "triton", "-q", *FAST)
    done = csaligner(*words)
    assert done.returncode != 0
    assert "GPU" in done.stderr


def test_train_says_what_it_gained_how_long_it_took_and_where_the_report_is(
    stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = csaligner("train", "--train-data", stores / "pairs", "--out", tmp_path / "run", "-q", *FAST)
    assert re.search(r"100 % of captions .* first 10 of 10 .*untrained alignment 100 %", run.stderr)
    assert "only 10 test images" in run.stderr
    assert f"report: {tmp_path / 'run' / 'report.html'}" in run.stderr
    assert "time" in run.stdout
    ours = next(line for line in run.stdout.splitlines() if line.strip().startswith("CS-Aligner"))
    assert re.search(r"\d \w+ *$", ours)
    seconds = json.loads((tmp_path / "run/run.json").read_text())["seconds"]
    assert seconds > 0
    csaligner("train", "--train-data", stores / "pairs", "--out", tmp_path / "run", "-q", *FAST)  # nothing to do
    assert json.loads((tmp_path / "run/run.json").read_text())["seconds"] == seconds


@pytest.mark.parametrize("kind", ["chosen", "moments"])
def test_every_start_is_fitted_to_unpaired_rows_too(kind: str, tmp_path: Path) -> None:
    """The untrained model of a run with unpaired images is that of the estimator with the same rows."""
    pairs, more = (Store.open(make_store(tmp_path / name, 45, (8, 8), seed=n)) for n, name in enumerate("ab"))
    images = more.rows("image", more.rows_of("image", "train"))
    config = load_config(TrainConfig, None, [f"start.kind={kind}", "epochs=0", "image_adapter=linear"])
    model = train(TrainingData(pairs, unpaired_images=(more,)), config, tmp_path / "run").model
    estimator, features = CSAligner(config, verbose=False), pairs.features("train")
    alone = estimator.fit_features(features).model.state_dict()["image_adapter.mean"]
    beside = estimator.fit_features(features, images).model.state_dict()["image_adapter.mean"]
    torch.testing.assert_close(model.state_dict()["image_adapter.mean"], beside)
    assert (beside - alone).abs().max() > 1e-3


def test_a_run_records_what_was_said_about_its_divergence(stores: Path, tmp_path: Path) -> None:
    words = ("train", "--train-data", stores / "pairs", "--out", tmp_path / "run", *FAST, "--bandwidth", "0.1")
    run = csaligner(*words)
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stderr.splitlines() if "bandwidth" in line]
    assert len(lines) == 1
    assert "0.1" in lines[0]
    record = json.loads((tmp_path / "run" / RECORD).read_text(encoding="utf-8"))
    assert any("bandwidth" in line for line in record["warnings"])
    assert "narrow" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
