"""Unpaired rows in the estimator, and experiment trackers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csaligner import CSAligner
from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig, load_config
from csaligner.training.samplers import PairSampler
from csaligner.training.trainer import METRICS, Hooks, RunOptions, Trainer
from tests.training.test_trainer import config, features, train

WRITER = """
import os

class SummaryWriter:
    def __init__(self, folder, **options):
        os.makedirs(folder)
        self.path = folder + "/written.txt"
    def add_hparams(self, values, metric_dict):
        self._write("hparams " + str(values["objective.bandwidth"]))
    def add_scalar(self, name, value, global_step, **options):
        self._write(f"{name} {value} {global_step}")
    def _write(self, line):
        open(self.path, "a").write(line + "\\n")
    def flush(self): pass
    def close(self): self._write("closed")
"""


def test_unpaired_rows_move_the_result_and_are_checked() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(30, 3))
    image, text = shared @ rng.normal(size=(3, 7)), shared @ rng.normal(size=(3, 5))
    settings: dict[str, Any] = {"epochs": 2, "gate": False, "unpaired": {"images": 8, "texts": 8}}
    more = image + 0.1, text[:20] - 0.1
    alone = CSAligner(**settings).fit(image, text).transform_text(text)
    beside = CSAligner(**settings).fit(image, text, unpaired_images=more[0], unpaired_texts=more[1])
    assert np.abs(beside.transform_text(text) - alone).max() > 1e-5
    again = CSAligner(**settings).fit(image, text, unpaired_images=more[0], unpaired_texts=more[1])
    np.testing.assert_array_equal(again.transform_text(text), beside.transform_text(text))
    with pytest.raises(InputError, match=r"unpaired_texts.*7.*5"):
        CSAligner(**settings).fit(image, text, unpaired_texts=image)
    with pytest.raises(InputError, match=r"unpaired_images.*1 of 30.*NaN"):
        CSAligner(**settings).fit(image, text, unpaired_images=np.where(np.arange(30)[:, None] == 3, np.nan, image))


def test_trackers_get_settings_and_numbers(tmp_path: Path) -> None:
    """A small module replaces tensorboardX; accelerate finds it like the real package."""
    (tmp_path / "tensorboardX.py").write_text(WRITER)
    about = tmp_path / "tensorboardX-2.6.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorboardX\nVersion: 2.6\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [
        sys.executable,
        "-c",
        f"from tests.training.test_unpaired import track; track({str(tmp_path / 'run')!r})",
    ]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "run").rglob("written.txt")
    lines = written.read_text().splitlines()
    assert lines[0] == f"hparams {config().objective.bandwidth}"
    assert [line.split()[2] for line in lines if line.startswith("loss/total ")] == [str(i) for i in range(1, 7)]
    assert lines[-1] == "closed"


def track(folder: str) -> None:
    """Train briefly in a separate process, since accelerate looks for trackers on import."""
    c = config(epochs=2)
    model, sampler = Aligner.fit_start(features(), c), PairSampler(features(), c.batch_size)
    Trainer(model, sampler, c, Path(folder), options=RunOptions(report_to=("tensorboard",))).fit()


def test_a_tracker_without_its_package_says_so() -> None:
    c = load_config(TrainConfig)
    with pytest.raises(InputError, match=r"report_to.*pip install trackio"):
        Trainer(None, PairSampler(features(), 16), c, options=RunOptions(report_to=("trackio",)))  # type: ignore[arg-type]


def test_what_is_no_number_is_null_in_the_metrics(tmp_path: Path) -> None:
    train(config(epochs=2), tmp_path, Hooks(lambda model: {"score": float("nan")}))
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line)["val/score"] for line in lines] == [None, None]
    assert "NaN" not in (tmp_path / "checkpoints" / "latest" / "trainer.json").read_text()
    train(config(epochs=2), tmp_path)  # and read again
    assert (tmp_path / METRICS).read_text().splitlines() == lines
