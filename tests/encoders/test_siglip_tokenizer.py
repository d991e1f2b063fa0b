"""SigLIP tokenizer: Unigram model of sentencepiece, as tokenizer.json or spiece.model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from csaligner.checks import InputError
from csaligner.encoders import open_encoder
from csaligner.encoders.text import TextEncoder

transformers = pytest.importorskip("transformers")
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"{SPACE}{w}", -2.0) for w in ("a", "red", "cat", "dog"))]
PIECES += [(SPACE, -3.0), *((letter, -6.0) for letter in "abcdefghijklmnop")]
CONFIG = {
    "added_tokens_decoder": {
        str(n): {"content": token, "lstrip": True, "rstrip": True, "normalized": False, "special": True}
        for n, token in ((1, "</s>"), (2, "<unk>"))
    },
    "clean_up_tokenization_spaces": True,
    "do_lower_case": True,
    "eos_token": "</s>",
    "model_input_names": ["input_ids"],
    "model_max_length": 8,
    "pad_token": "</s>",
    "processor_class": "SiglipProcessor",
    "sp_model_kwargs": {},
    "tokenizer_class": "SiglipTokenizer",
    "unk_token": "<unk>",
}


def fast_tokenizer() -> str:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.Unigram(PIECES, unk_id=2, byte_fallback=False))
    made.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""), normalizers.Strip()]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["</s>", "<unk>"])
    return str(made.to_str())


@pytest.fixture
def published(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """Folder of the small model with the tokenizer files of SigLIP on the hub instead of its own."""
    folder = tmp_path / "siglip"
    shutil.copytree(tiny_model("siglip"), folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], "vocab_size": len(PIECES)}
    made = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=config["vision_config"]))
    made.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return folder


def test_tokenizer_json_is_enough(published: Path) -> None:
    (published / "tokenizer.json").write_text(fast_tokenizer())
    encoder = open_encoder(f"hf:{published}", "text")
    assert isinstance(encoder, TextEncoder)
    inputs = encoder.inputs(["A red, CAT!", "dog"])
    assert inputs["input_ids"].tolist() == [[3, 4, 5, 1, 1, 1, 1, 1], [6, 1, 1, 1, 1, 1, 1, 1]]  # padded by </s>
    model = transformers.SiglipModel.from_pretrained(published).eval()
    with torch.no_grad():
        wanted = model.get_text_features(input_ids=inputs["input_ids"])
    wanted = getattr(wanted, "pooler_output", wanted)
    torch.testing.assert_close(encoder.encode(["A red, CAT!", "dog"]), wanted, atol=2e-6, rtol=1e-5)
    assert encoder.token_count("a red cat") == 4


def test_spiece_model_alone_names_the_package(published: Path) -> None:
    if find_spec("sentencepiece") is not None:
        pytest.skip("sentencepiece is installed, which reads spiece.model")
    (published / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(InputError, match=r"spiece\.model.*sentencepiece") as caught:
        open_encoder(f"hf:{published}", "text")
    assert "\n" not in str(caught.value)
    assert str(published) in str(caught.value)
