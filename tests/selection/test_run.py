"""Selection in run folders: recorded, resumed, and read back by what uses the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from csaligner import AlignedModel, train, write_store
from csaligner.adapters.aligner import Aligner
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.pipeline import Run, evaluate_run
from csaligner.run_folder import CONFIG, RECORD, read_config
from csaligner.selection.run import VALIDATION_IMAGES
from csaligner.store.store import Store
from csaligner.types import EncoderInfo, PairedFeatures, Split

SMALL: dict[str, Any] = {"epochs": 4, "lr": 0.02, "evaluate_every": 1, "batch_size": 64}
SMALL |= {f"{side}_adapter": {"hidden": 8} for side in ("image", "text")}


def make_store(folder: Path, n: int, held: int, *, learnable: bool, seed: int = 0) -> Store:
    """n training and `held` validation and test pairs. learnable: texts are rotated images, so training from the
    identity helps; else they are unrelated to images."""
    g = torch.Generator().manual_seed(seed)
    total = n + 2 * held
    image = torch.randn(total, 8, generator=g)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    text = image @ turn if learnable else torch.randn(total, 8, generator=g)
    ids = tuple(map(str, range(total)))
    pairs = PairedFeatures(image, text + 0.05 * torch.randn(total, 8, generator=g), torch.arange(total), ids)
    splits: dict[str, Split] = {i: "train" if int(i) < n else "val" if int(i) < n + held else "test" for i in ids}
    infos = EncoderInfo("a", "1", "image", 8, {}), EncoderInfo("b", "1", "text", 8, {})
    return write_store(folder, pairs, infos, splits=splits)


FROM_IDENTITY: dict[str, Any] = {"start": {"kind": "identity"}, "image_adapter": "linear", "text_adapter": "linear"}


def config(**settings: Any) -> TrainConfig:
    return build_config(TrainConfig, SMALL | settings)


GAINS = config(epochs=12, **FROM_IDENTITY | {"evaluate_every": 6})


def selection(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "selection.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("noise") / "store", 210, 20, learnable=False)


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("learnable") / "store", 300, 40, learnable=True)


def test_noise_is_not_learnt(noise: Store, tmp_path: Path) -> None:
    run = train(noise, config(), tmp_path / "run")
    record = selection(tmp_path / "run")
    assert record["gate"]["scale"] == 0
    assert run.selection is not None
    assert record["line"] == run.selection.line
    assert "not kept" in record["line"]
    start = Aligner.load(tmp_path / "run" / "checkpoints" / "start").state_dict()
    used = AlignedModel.open(tmp_path / "run").aligner.state_dict()
    assert all(torch.equal(used[name], start[name]) for name in start)
    report = evaluate_run(tmp_path / "run", "test")
    by_name = {result.name: result.metrics for result in report}
    assert by_name["CS-Aligner"] == by_name["closed-form start"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert record["line"] in page
    assert "not kept" in page
    assert "do not differ" not in page


@pytest.fixture(scope="module")
def gained(learnable: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    out = tmp_path_factory.mktemp("gained") / "run"
    return out, train(learnable, GAINS, out)


def test_a_gain_is_kept_and_used(gained: tuple[Path, Run]) -> None:
    out, run = gained
    record = selection(out)
    assert record["gate"]["scale"] > 0
    assert record["gate"]["images"] == 300  # all training pairs, each held out once; no test pairs
    used = AlignedModel.open(out).aligner.state_dict()
    assert all(torch.equal(used[name], value) for name, value in run.model.state_dict().items())
    by_name = {result.name: result.metrics for result in evaluate_run(out, "val")}
    assert by_name["CS-Aligner"]["mean_recall@1"] > by_name["closed-form start"]["mean_recall@1"]


def test_an_interrupted_run_resumes_with_its_choices(
    learnable: Store, gained: tuple[Path, Run], tmp_path: Path
) -> None:
    def interrupt(step: int, total: int, values: object) -> None:
        if step == 32:
            raise KeyboardInterrupt

    whole = gained[1]
    with pytest.raises(KeyboardInterrupt):
        train(learnable, GAINS, tmp_path / "run", interrupt)
    before = selection(tmp_path / "run")
    again = train(learnable, GAINS, tmp_path / "run")
    assert selection(tmp_path / "run") == before
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")}
    train(learnable, GAINS, tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.safetensors")} == stamps


def test_a_large_validation_split_decides(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 60, VALIDATION_IMAGES, learnable=False)
    train(store, config(epochs=1), tmp_path / "run")
    assert selection(tmp_path / "run")["gate"]["images"] == VALIDATION_IMAGES


def test_a_damaged_selection_is_refused(noise: Store, tmp_path: Path) -> None:
    train(noise, config(), tmp_path / "run")
    path = tmp_path / "run" / "selection.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"scale": 0.0', '"scale": 1.0'), encoding="utf-8")
    with pytest.raises(InputError, match="selection"):
        train(noise, config(), tmp_path / "run")


def test_forced_settings_select_nothing(noise: Store, tmp_path: Path) -> None:
    run = train(noise, config(start={"kind": "auto"}, gate=False), tmp_path / "run")
    assert run.selection is None
    assert not (tmp_path / "run" / "selection.json").exists()
    assert len(run.history) == 4


def test_runs_of_earlier_versions_keep_their_meaning(noise: Store, tmp_path: Path) -> None:
    train(noise, config(start={"kind": "auto"}, gate=False), tmp_path / "run")
    data = yaml.safe_load((tmp_path / "run" / CONFIG).read_text(encoding="utf-8"))
    del data["gate"], data["start"]["prefer"]  # as before the gate
    (tmp_path / "run" / CONFIG).write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    record = json.loads((tmp_path / "run" / RECORD).read_text(encoding="utf-8"))
    plain = {name: value for name, value in record.items() if name not in ("sha256", "config_sha256")}
    (tmp_path / "run" / RECORD).write_text(json.dumps(plain), encoding="utf-8")
    old = read_config(tmp_path / "run")
    assert not old.gate
    assert old.start.kind == "auto"
    assert old.epochs == 4
    assert [result.name for result in evaluate_run(tmp_path / "run", "test")][-1] == "CS-Aligner"
