"""Token features of a store: splits, atomic writes and checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from csaligner.checks import InputError
from csaligner.cli import app
from csaligner.comparison.folds import open_folds
from csaligner.integrity import save_tensors
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.shard_maker import Encoders
from csaligner.store.store import Store
from csaligner.store.tokens import TOKENS, embed_tokens, read_tokens
from csaligner.types import Dataset, Encoder, Item

Listed = Callable[..., Dataset]
MakeItems = Callable[[int], list[Item]]


class WithTokens:
    """Item i has pairs of tokens, its feature plus and minus (t + 1), whose mean is the feature."""

    def __init__(self, inner: Any, extra: int = 0) -> None:
        self._inner, self._extra = inner, extra
        self.info, self.prepare, self.encode = inner.info, inner.prepare, inner.encode

    def encode_tokens(self, prepared: Sequence[Any]) -> tuple[Tensor, Tensor]:
        x = self._inner.encode(prepared)
        steps = torch.tensor([1.0, -1.0, 2.0, -2.0])[None, :, None]
        mask = torch.ones(len(x), 4, dtype=torch.bool)
        mask[x[:, 0].long() % 2 == 0, 2:] = False
        return torch.nn.functional.pad(x[:, None] + steps, (0, self._extra)), mask


@pytest.fixture
def encoders(image_encoder: Any, text_encoder: Any) -> Encoders:
    return Encoders(WithTokens(image_encoder), WithTokens(text_encoder))


@pytest.fixture
def store(tmp_path: Path, make_items: MakeItems, listed: Listed, encoders: Encoders) -> Store:
    settings = ExtractSettings(shard_size=8, batch_size=3, workers=0)
    return embed(listed(make_items(60)), encoders.image, encoders.text, tmp_path / "store", settings)


def test_the_tokens_of_a_split_stand_in_the_order_of_its_features(store: Store, encoders: Encoders) -> None:
    told: list[tuple[int, int]] = []
    embed_tokens(store, encoders, 4, lambda done, total: told.append((done, total)))
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
    embed_tokens(store, encoders, 2)
    tokens, features = read_tokens(store), store.features()
    odd = int((features.image[:, 0] % 2 == 1).nonzero()[0])
    wanted = torch.stack([features.image[odd] + 1, features.image[odd] - 2])  # the first and the last of four
    assert torch.equal(tokens.image[torch.tensor([odd])].states[0].float(), wanted)


def test_a_file_that_is_there_stays_and_another_number_replaces_it(store: Store, encoders: Encoders) -> None:
    embed_tokens(store, encoders, 2)
    first = (store.path / TOKENS).stat()
    embed_tokens(store, encoders, 2)
    assert (store.path / TOKENS).stat().st_mtime_ns == first.st_mtime_ns
    embed_tokens(store, encoders, 4)
    assert (store.path / TOKENS).stat().st_size > first.st_size
    store.verify()


def test_other_peoples_and_damaged_tokens_are_refused(
    store: Store, encoders: Encoders, tmp_path: Path, make_items: MakeItems, listed: Listed
) -> None:
    with pytest.raises(InputError, match=r"tokens\.safetensors.*--tokens"):
        read_tokens(store)
    embed_tokens(store, encoders, 2)
    other = embed(listed(make_items(20)), encoders.image, encoders.text, tmp_path / "other")
    whole = (store.path / TOKENS).read_bytes()
    (other.path / TOKENS).write_bytes(whole)
    with pytest.raises(InputError, match=r"another store.*--tokens"):
        read_tokens(other)
    embed_tokens(other, encoders, 2)  # repairs it
    assert len(read_tokens(other).image) == 20
    for broken in (whole[:-3], whole[:-3] + bytes(3 * [255])):
        (store.path / TOKENS).write_bytes(broken)
        with pytest.raises(InputError, match="--tokens"):
            read_tokens(store)


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1], lambda c: c - 4, lambda c: c.double(), lambda c: torch.cat([c[1:], c[:1] + 1])]
)
def test_counts_that_do_not_fit_are_one_line(store: Store, encoders: Encoders, change: Callable[..., Any]) -> None:
    embed_tokens(store, encoders, 2)
    tensors = load_file(store.path / TOKENS)
    save_tensors(tensors | {"text_counts": change(tensors["text_counts"])}, store.path / TOKENS)
    with pytest.raises(InputError, match="text"):
        read_tokens(store)


def test_encoders_that_will_not_do(store: Store, image_encoder: Any, text_encoder: Any, encoders: Encoders) -> None:
    text = encoders.text
    cases: list[tuple[Encoder, str]] = [
        (image_encoder, "tokens.*fake-image"),
        (WithTokens(image_encoder, extra=2), "5 dimensions and features of 3"),
        (WithTokens(type(image_encoder)("2")), "embed the data with that encoder"),
    ]
    for image, line in cases:
        with pytest.raises(InputError, match=line):
            embed_tokens(store, Encoders(image, text), 2)
        assert not (store.path / TOKENS).exists()


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
    assert (store / TOKENS).is_file()
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
    refused = CliRunner().invoke(app, [*words, "--tokens", "3", "--text-only"])
    assert "--tokens needs images and captions" in str(refused.exception)
