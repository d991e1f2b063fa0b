"""Short deterministic fuzz test of the fast readers; `make fuzz` tests all readers for ten minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from csaligner.adapters.aligner import Aligner

ROOT = Path(__file__).parents[2]
SHORT = ("csv", "jsonl", "parquet table", "karpathy", "webdataset", "svg", "npy", "store", "config")


def test_readers_take_anything(tmp_path: Path) -> None:
    """Runs in a separate single-threaded process, which can fork safely."""
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.fuzz", "--rounds", "1", "--out", str(out), "--only", *SHORT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    counts = json.loads(out.read_text(encoding="utf-8"))["counts"]
    assert sum(sum(found.values()) for found in counts.values()) >= 20


def test_what_must_not_be_is_found(tmp_path: Path) -> None:
    """Self-test: the harness distinguishes crash, hang, death and excessive memory."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.broken"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["crash", "died", "hang", "memory", "read", "refused"], done.stderr[-2000:]


# found by `make fuzz`; each by its target, its seed where that still makes it, and what it raised
def test_a_name_with_a_zero_byte_in_data_for_an_index(tmp_path: Path) -> None:
    from csaligner.datasets.documents import find_entries

    (tmp_path / "t.csv").write_bytes(b"image,caption\na\0.png,x\n,y\n")
    assert [entry.text for entry in find_entries(str(tmp_path / "t.csv")).entries] == ["y"]


def test_a_damaged_header_of_a_shard(tmp_path: Path) -> None:
    from csaligner.checks import InputError
    from csaligner.store.store import Store

    from .valid import store

    path = store(tmp_path) / "img_emb" / "img_emb_0.npy"
    content = bytearray(path.read_bytes())
    content[10:14] = b"\x00((("
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="read"):
        Store.open(path.parents[1])


FLIPS = """
import sys
from pathlib import Path
from csaligner.parquet import open_parquet
path = Path(sys.argv[1])
content = path.read_bytes()
for place in range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content), 2):
    path.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1:])
    try:
        with open_parquet(path) as file:
            file.read(file.names)
    except ValueError:
        pass
"""


def test_no_damaged_footer_ends_the_process(tmp_path: Path) -> None:
    """pyarrow aborts when reading columns of some damaged files."""
    from .valid import img2dataset

    path = img2dataset(tmp_path) / "00000.parquet"
    subprocess.run([sys.executable, "-c", FLIPS, str(path)], cwd=ROOT, check=True, timeout=120)


def test_a_tokenizer_that_does_not_parse(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from csaligner.checks import InputError
    from csaligner.encoders import open_encoder

    from .valid import encoder

    path = encoder("bert")(tmp_path)
    (path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="tokenizer"):
        open_encoder(str(path), "text")


def test_a_size_that_is_no_number_in_a_list_of_checksums(tmp_path: Path) -> None:
    from csaligner.checks import InputError
    from csaligner.integrity import ErrorContext, check_checksums

    (tmp_path / "checksums.json").write_text('{"files": {"a": {"bytes": "1", "sha256": ""}}}', encoding="utf-8")
    with pytest.raises(InputError, match="SHA-256"):
        check_checksums(tmp_path, ErrorContext("decoder", "copy it again"))


def test_a_broken_line_in_data_for_an_index(tmp_path: Path) -> None:
    from csaligner.checks import InputError
    from csaligner.datasets.documents import find_entries

    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "caption": "x"}\n{"image": [1, {}], "caption": \n')
    (tmp_path / "t2.jsonl").write_text("{\n")
    assert "line 2" in find_entries(str(tmp_path / "t.jsonl")).skipped[0]
    with pytest.raises(InputError, match="line 1"):
        find_entries(str(tmp_path / "t2.jsonl"))


def test_a_history_that_is_no_number(tmp_path: Path) -> None:
    from csaligner.checks import InputError
    from csaligner.training.checkpoint import Checkpoints, Tensors, TrainerState, read_checkpoint

    from .valid import aligner

    model = Aligner.load(aligner(tmp_path))
    empty = Tensors({}, {}, {}, torch.zeros(1, 4, dtype=torch.uint8))
    Checkpoints(tmp_path).save(model, TrainerState(step=1, history=[{"loss": 1.0}]), empty)
    path = tmp_path / "checkpoints" / "step_1" / "trainer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    del value["sha256"]
    path.write_text(json.dumps(value | {"history": [{"loss": "x"}]}), encoding="utf-8")
    with pytest.raises(InputError, match="read"):
        read_checkpoint(path.parent)


@pytest.mark.parametrize("broken", [[{}], {"curves": {}}, {"curves": {}, "shared": {}, "offset": {}}])
def test_a_calibration_that_is_none(broken: Any) -> None:
    from csaligner.search.calibration import Calibration

    with pytest.raises(ValueError, match=r"wanted|missing|required|dictionary|instance"):
        Calibration.from_json(broken)


def test_versions_in_a_record_that_are_no_texts() -> None:
    from csaligner.reporting.record import MethodResult, ReportData
    from csaligner.reporting.report import render_report

    results = [MethodResult("CS-Aligner", 0, {})]
    data = ReportData("t", results, rival=None, versions={"torch": 3})  # type: ignore[dict-item]
    assert "<td>3</td>" in render_report(data)
