"""Damaged files (flipped bit, truncated, missing): detected and named, or created again."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from csaligner.adapters.aligner import Aligner, align
from csaligner.checks import InputError
from csaligner.config import TrainConfig, build_config
from csaligner.datasets import open_dataset
from csaligner.encoders import open_encoder
from csaligner.pipeline import load_run, train
from csaligner.run_folder import read_config, read_record
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store
from csaligner.training.checkpoint import read_checkpoint
from tests.faults.conftest import PICTURES, Data, Starter, Undisturbed
from tests.faults.state import files
from tests.faults.zygote import TinyImages, TinyTexts

FLIPS = int(os.environ.get("CSALIGNER_FAULT_KILLS", "1"))  # per file; more in `make faults`


@dataclass(frozen=True)
class Whole:
    """ask: reads a folder, to a value comparable with ==; wanted: value for the intact folder."""

    folder: Path
    ask: Callable[[Path], Any]
    wanted: Any


def plain(value: Any) -> Any:
    """Convert tensors to bytes, for bitwise comparison."""
    if isinstance(value, Tensor):
        return value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def ask_store(folder: Path) -> Any:
    found = Store.open(folder)
    f = found.features()
    return plain([f.image, f.text, f.text_to_image, f.image_ids, f.captions, found.counts, str(found.manifest)])


def ask_run(folder: Path) -> Any:
    store = Store.open(Path(read_record(folder)["store"]))
    model, features = load_run(folder, store, "test")
    state, tensors = read_checkpoint(folder / "checkpoints" / "latest")
    aligned = align(model, features)
    weights = [tensors.weights, tensors.optimizer, tensors.memory, tensors.random]
    return plain([aligned.image, aligned.text, state.history, state.objective, *weights, str(read_config(folder))])


def ask_index(folder: Path) -> Any:
    from csaligner.search.index import Index

    found = Index.open(folder, (TinyImages(), TinyTexts()))
    return [found.search(words, k=40) for words in ("picture number 3", "something else")], found.bias


READERS = {"embed": ask_store, "train": ask_run, "lora": ask_run, "index": ask_index}


@pytest.fixture(scope="module", params=list(READERS))
def whole(request: pytest.FixtureRequest, data: Data, undisturbed: Undisturbed) -> Whole:
    ask = READERS[request.param]
    folder = request.getfixturevalue("lora") if request.param == "lora" else data.run
    if request.param not in ("train", "lora"):
        folder = undisturbed(request.param)[0]
    return Whole(folder, ask, ask(folder))


@pytest.fixture(scope="module")
def lora(data: Data, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with LoRA in its text encoder."""
    pytest.importorskip("peft", reason="peft is not installed")
    folder = tmp_path_factory.mktemp("lora")
    text = open_encoder(f"hf:{tiny_model('bert')}", "text")
    quick = ExtractSettings(workers=0, shard_size=PICTURES)
    store = embed(open_dataset(str(data.pictures)), TinyImages(), text, folder / "store", quick)
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 8, "lr": 0.01, "lora": {"sides": "text"}}
    train(store, build_config(TrainConfig, settings), folder / "run")
    return folder / "run"


def harm_each(whole: Whole, tmp_path: Path, harm: Callable[[Path, int], None], times: int) -> int:
    """Damage each file of a copy `times` times, read and restore it; returns how often the reader refused."""
    copy = tmp_path / whole.folder.name
    shutil.copytree(whole.folder, copy, symlinks=True)
    refused = 0
    for name, content in files(copy).items():
        path = copy / name
        if path.is_symlink() or not content:
            continue
        for number in range(times):
            harm(path, number)
            found, refusal = answer(whole, copy)
            if refusal:
                refused += 1
                assert "\n" not in refusal
                assert named(path, copy, refusal), f"{name}: {refusal}"
            else:
                assert found == whole.wanted, f"{name} was harmed, and nobody noticed"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    return refused


def answer(whole: Whole, folder: Path) -> tuple[Any, str]:
    """Return the reader's value or its error."""
    try:
        return whole.ask(folder), ""
    except InputError as error:
        return None, str(error)


def named(path: Path, folder: Path, message: str) -> bool:
    """Return whether the message names the file or one of its parents below the given folder."""
    inner = [path, *(parent for parent in path.parents if parent != folder and parent.is_relative_to(folder))]
    return any(str(p) in message or str(p.relative_to(folder)) in message for p in inner)


def test_one_flipped_bit(whole: Whole, tmp_path: Path) -> None:
    def flip(path: Path, number: int) -> None:
        draw = random.Random(f"{path.name} {number}")
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(content))

    assert harm_each(whole, tmp_path, flip, FLIPS) >= FLIPS * 3


def test_half_a_file(whole: Whole, tmp_path: Path) -> None:
    def cut(path: Path, number: int) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    assert harm_each(whole, tmp_path, cut, 1) >= 3


def test_a_lost_file(whole: Whole, tmp_path: Path) -> None:
    assert harm_each(whole, tmp_path, lambda path, number: path.unlink(), 1) >= 3


def test_embed_makes_a_lost_shard_again(data: Data, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    shutil.copytree(data.store, copy)
    (copy / "text_emb" / "text_emb_2.npy").unlink()
    with pytest.raises(InputError, match=r"text_emb_2\.npy"):
        Store.open(copy)
    encoder = Counts()
    embed(open_dataset(str(data.pictures)), encoder, TinyTexts(), copy, ExtractSettings(batch_size=3, workers=0))
    assert encoder.seen == 5  # the images of one shard
    assert files(copy) == files(data.store)


class Counts(TinyImages):
    seen = 0

    def encode(self, prepared: Any) -> Tensor:
        self.seen += len(prepared)
        return super().encode(prepared)


def test_embed_makes_a_shard_again_whose_record_is_damaged(data: Data, start: Starter, tmp_path: Path) -> None:
    from tests.faults.conftest import Kill

    out = tmp_path / "store"
    start(data.words("embed", out), out, Kill(operation=40))
    records = sorted((out / "unfinished").glob("*.json"))
    assert len(records) >= 2, "it was killed too early for this test"
    records[0].write_text(records[0].read_text(encoding="utf-8").replace('"images": 5', '"images": 4'))
    again = start(data.words("embed", out), out)
    assert again.code == 0, again.said
    assert files(out) == files(data.store)


@pytest.mark.parametrize("harm", ["cut", "removed"])
def test_a_shard_that_goes_while_it_is_in_use(data: Data, tmp_path: Path, harm: str) -> None:
    copy = tmp_path / "store"
    shutil.copytree(data.features, copy)
    store = Store.open(copy)
    before = store.rows("image", [0, 1])
    path = copy / "img_emb" / "img_emb_0.npy"
    content = path.read_bytes()
    if harm == "cut":
        os.truncate(path, len(content) // 2)
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"img_emb_0\.npy"):
        store.rows("image", [299])
    path.write_bytes(content)
    assert store.rows("image", [0, 1]).equal(before)


def test_training_starts_over_where_its_checkpoints_are_gone(data: Data, start: Starter, tmp_path: Path) -> None:
    from tests.faults.state import records

    out = tmp_path / "run"
    shutil.copytree(data.run, out, symlinks=True)
    shutil.rmtree(out / "checkpoints")
    words = [str(data.store) if word == str(data.features) else word for word in data.words("train", out)]
    again = start(words, out)
    assert again.code == 0, again.said
    assert records(out) == records(data.run)


def test_a_saved_aligner_of_an_older_version_is_read(data: Data, tmp_path: Path) -> None:
    """Files without checksums are read without verification."""
    from safetensors.torch import load_file, save_file

    from csaligner.files import write_json
    from csaligner.parsing import parse_json

    folder = tmp_path / "model"
    shutil.copytree(data.run / "checkpoints" / "best", folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors")
    value = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    del value["sha256"]
    write_json(folder / "config.json", value)
    assert plain(dict(Aligner.load(folder).state_dict())) == plain(weights)


@pytest.mark.parametrize(
    ("name", "content"),
    [("adapter_model.safetensors", b"\x10" + bytes(7) + b"{" * 16), ("adapter_config.json", b'{"peft_type": {}}')],
    ids=["weights", "settings"],
)
def test_a_damaged_lora_of_an_older_version_is_refused(lora: Path, tmp_path: Path, name: str, content: bytes) -> None:
    """Without checksums, damage is detected by parsing."""
    copy = tmp_path / "run"
    shutil.copytree(lora, copy, symlinks=True)
    checkpoint = copy / "checkpoints" / "latest"
    (checkpoint / "checksums.json").unlink()
    assert ask_run(copy) == ask_run(lora)
    (checkpoint / "text_lora" / name).write_bytes(content)
    with pytest.raises(InputError, match="text_lora"):
        ask_run(copy)


def harm_the_largest(folder: Path, suffix: str) -> Path:
    path = max(folder.rglob(f"*{suffix}"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    return path


def test_check_data_reads_every_file_of_a_store(data: Data, start: Starter, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(data.store, copy)
    whole = start(["check-data", str(copy), "--json"], copy)
    assert whole.code == 0, whole.said
    assert f'{{"dataset": "{copy}", "problems": []}}' in whole.said
    path = harm_the_largest(copy, ".npy")
    harmed = start(["check-data", str(copy)], copy)
    assert harmed.code == 1
    assert path.name in harmed.said


def test_check_reads_the_large_files_of_an_index_too(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(undisturbed("index")[0], copy)
    from csaligner.search import index as module

    monkeypatch.setattr(module, "SMALL", 0)  # all are large
    path = harm_the_largest(copy, ".lance")
    opened = module.Index.open(copy, (TinyImages(), TinyTexts()))
    with pytest.raises(InputError, match=path.name):
        opened.check()
    with pytest.raises(InputError, match=path.name):  # and by a query
        opened.search("picture number 3")
