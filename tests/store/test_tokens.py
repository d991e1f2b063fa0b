"""Token features of a store: splits, atomic writes and checks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from csaligner.checks import InputError
from csaligner.cli import app
from csaligner.comparison.folds import open_folds
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.read_tokens import add_tokens, has_tokens, read_states, read_tokens
from csaligner.store.shard_maker import Encoders
from csaligner.store.store import Store
from csaligner.store.tokens import FOLDER, finish_tokens, token_file
from csaligner.types import Dataset, EncodedTokens, Encoder, Item

Listed = Callable[..., Dataset]
MakeItems = Callable[[int], list[Item]]


class WithTokens:
    """Item i has pairs of tokens, its feature plus and minus (t + 1), whose mean is the feature."""

    def __init__(self, inner: Any, extra: int = 0) -> None:
        self._inner, self._extra, self.calls = inner, extra, 0
        self.info, self.prepare, self.encode = inner.info, inner.prepare, inner.encode

    def encode_with_tokens(self, prepared: Sequence[Any]) -> EncodedTokens:
        x = self._inner.encode(prepared)
        steps = torch.tensor([1.0, -1.0, 2.0, -2.0])[:, None]
        sets = [row + steps[: 2 if int(row[0]) % 2 == 0 else 4] for row in x]
        self.calls += 1
        states = [torch.cat([row[None], tokens]).repeat(1, 2) for row, tokens in zip(x, sets, strict=True)]
        return EncodedTokens(x, [torch.nn.functional.pad(t, (0, self._extra)) for t in sets], states)


@pytest.fixture
def encoders(image_encoder: Any, text_encoder: Any) -> Encoders:
    return Encoders(WithTokens(image_encoder), WithTokens(text_encoder))


@pytest.fixture
def store(tmp_path: Path, make_items: MakeItems, listed: Listed, encoders: Encoders) -> Store:
    settings = ExtractSettings(shard_size=8, batch_size=3, workers=0)
    return embed(listed(make_items(60)), encoders.image, encoders.text, tmp_path / "store", settings)


def test_the_tokens_of_a_split_stand_in_the_order_of_its_features(store: Store, encoders: Encoders) -> None:
    told: list[tuple[int, int]] = []
    add_tokens(store, encoders, 4, lambda done, total: told.append((done, total)))
    assert told[-1] == (store.n_images + store.n_captions,) * 2
    for split in (None, "train", "val", "test"):
        features, tokens = store.features(split), read_tokens(store, split)
        for rows, sets in ((features.image, tokens.image), (features.text, tokens.text)):
            assert len(rows) == len(sets)
            found = sets[torch.arange(len(rows))]
            assert found.mask.sum(dim=1).tolist() == [2 if int(row[0]) % 2 == 0 else 4 for row in rows]
            means = (found.states.float() * found.mask[..., None]).sum(dim=1) / found.mask.sum(dim=1)[:, None]
            torch.testing.assert_close(means, rows)  # whole numbers: exact in half precision


def test_at_most_so_many_at_even_steps(store: Store, encoders: Encoders) -> None:
    add_tokens(store, encoders, 2)
    tokens, features = read_tokens(store), store.features()
    odd = int((features.image[:, 0] % 2 == 1).nonzero()[0])
    wanted = torch.stack([features.image[odd] + 1, features.image[odd] - 2])  # the first and the last of four
    assert torch.equal(tokens.image[torch.tensor([odd])].states[0].float(), wanted)


def test_tokens_of_the_first_pass_equal_those_added_later(
    store: Store, encoders: Any, tmp_path: Path, make_items: MakeItems, listed: Listed
) -> None:
    """Images are read once, and files are the same byte for byte."""
    calls = encoders.image.calls
    settings = ExtractSettings(shard_size=8, batch_size=3, workers=0, tokens=2)
    once = embed(listed(make_items(60)), encoders.image, encoders.text, tmp_path / "once", settings)
    assert encoders.image.calls - calls == 8 * 3 - 1  # shards of 3 batches, the last of 2
    add_tokens(store, encoders, 2)
    assert once.manifest.shards == store.manifest.shards
    for number in range(8):
        assert token_file(once.path, number).read_bytes() == token_file(store.path, number).read_bytes()
    assert (once.path / FOLDER / "checksums.json").read_bytes() == (store.path / FOLDER / "checksums.json").read_bytes()


def test_hidden_states_of_the_captions(store: Store, encoders: Encoders) -> None:
    assert read_states(store) is None
    add_tokens(store, encoders, 2)
    features, states = store.features("train"), read_states(store, "train")
    assert states is not None
    assert states.dim == 2 * features.text.shape[1]
    found = states[torch.arange(len(features.text))]
    torch.testing.assert_close(found.states[:, 0, states.dim // 2 :].float(), features.text)
    assert found.mask.sum(dim=1).tolist() == [3 if int(row[0]) % 2 == 0 else 5 for row in features.text]


def test_a_file_that_is_there_stays_and_another_number_replaces_it(store: Store, encoders: Encoders) -> None:
    add_tokens(store, encoders, 2)
    first = token_file(store.path, 0).stat()
    add_tokens(store, encoders, 2)
    assert token_file(store.path, 0).stat().st_mtime_ns == first.st_mtime_ns
    before = read_tokens(store).image
    assert before[torch.arange(3)].states.shape[1] == 2
    add_tokens(store, encoders, 4)
    assert token_file(store.path, 0).stat().st_size > first.st_size
    assert read_tokens(store).image[torch.arange(3)].states.shape[1] == 4
    store.verify()


def test_other_peoples_and_damaged_tokens_are_refused(
    store: Store, encoders: Encoders, tmp_path: Path, make_items: MakeItems, listed: Listed
) -> None:
    with pytest.raises(InputError, match=r"tokens.*--tokens"):
        read_tokens(store)
    add_tokens(store, encoders, 2)
    other = embed(listed(make_items(20)), encoders.image, encoders.text, tmp_path / "other")
    shutil.copytree(store.path / FOLDER, other.path / FOLDER)
    with pytest.raises(InputError, match=r"another store.*--tokens"):
        read_tokens(other)
    add_tokens(other, encoders, 2)  # repairs it
    assert len(read_tokens(other).image) == 20
    whole = token_file(store.path, 1).read_bytes()
    for broken in (whole[:-3], whole[:-3] + bytes(3 * [255])):
        token_file(store.path, 1).write_bytes(broken)
        with pytest.raises(InputError, match="--tokens"):
            read_tokens(store)


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c - 4, lambda c: c.double()])
def test_counts_that_do_not_fit_are_one_line(store: Store, encoders: Encoders, change: Callable[..., Any]) -> None:
    add_tokens(store, encoders, 2)
    path = token_file(store.path, 0)
    tensors = load_file(path)
    save_file(tensors | {"text_counts": change(tensors["text_counts"])}, path)
    finish_tokens(store.path, store.manifest.plan, 8, 2)
    with pytest.raises(InputError, match="text"):
        read_tokens(store)


def test_encoders_that_will_not_do(store: Store, image_encoder: Any, text_encoder: Any, encoders: Encoders) -> None:
    text = encoders.text
    cases: list[tuple[Encoder, str]] = [
        (image_encoder, "tokens.*fake-image"),
        (WithTokens(image_encoder, extra=2), "5 dimensions and features of 3"),
        (WithTokens(type(image_encoder)("2")), "embed the data with fake-image"),
    ]
    for image, line in cases:
        with pytest.raises(InputError, match=line):
            add_tokens(store, Encoders(image, text), 2)
        assert not (store.path / FOLDER / "checksums.json").exists()


def test_from_the_command_line_into_training_and_comparison(
    tmp_path: Path, make_items: MakeItems, encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"image": encoders.image, "text": encoders.text}
    monkeypatch.setattr("csaligner.pipeline.open_encoder", lambda name, modality: made[modality])
    table = ["image\tcaption\tsplit"]
    for number, item in enumerate(make_items(30)):
        table += [f"{item.image}\t{text}\t{('train', 'val', 'test')[number % 3]}" for text in item.captions]
    (tmp_path / "pairs.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    store, run = tmp_path / "store", tmp_path / "run"
    words = ["embed", "--train-data", str(tmp_path / "pairs.csv"), "--out", str(store), "-q"]
    words += ["--csv-separator", "\t", "--csv-split-key", "split"]
    done = CliRunner().invoke(app, [*words, "--tokens", "3", "--workers", "0"])
    assert done.exit_code == 0, done.output
    assert has_tokens(Store.open(store))
    assert open_folds(store)[0].train_and_val.tokens is not None
    train = ["train", "--train-data", str(store), "--out", str(run), "-q", "epochs=2", "evaluate_every=1", "gate=false"]
    terms = ["objective.terms.info_nce=1.0", "objective.terms.token_cauchy_schwarz=0.3"]
    done = CliRunner().invoke(app, [*train, *terms])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["loss/token_cauchy_schwarz"] > 0 for line in lines] == [True, True]
    out = tmp_path / "compare"
    names = ["compare", "--data", str(store), "--methods", "cs-aligner-default,cs-aligner-token", "--out", str(out)]
    done = CliRunner().invoke(app, [*names, "--trials", "1", "--seeds", "1", "--epochs", "2", "--jobs", "1", "-q"])
    assert done.exit_code == 0, done.output
    record = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    measured = {m["method"]: m for m in record["measured"]}
    assert [name for name in measured if "then centred" not in name] == ["cs-aligner-default", "cs-aligner-token"]
    assert measured["cs-aligner-token"]["settings"]["weight"] > 0
