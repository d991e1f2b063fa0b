"""Small transformers models with random weights, saved with real tokenizers and processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ["a", "b", "c", "red", "green", "blue", "cat", "dog", "house", "on", "the", "of", "and", "big", "small", "runs"]
Maker = Callable[[Path], None]


def wordlevel(specials: list[str], template: tuple[str, str] | None, **kwargs: Any) -> Any:
    """Return a fast tokenizer with vocabulary WORDS; template: special tokens before and after a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=specials[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        before, after = template
        used = [(token, vocab[token]) for token in template if token]
        single = " ".join(part for part in (before, "$A", after) if part)
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)
    names = ["input_ids", "attention_mask"]  # transformers before 5 adds token_type_ids, which CLIP does not take
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=specials[0], model_input_names=names, **kwargs)


def make_clip(folder: Path, side: int = 16, projection: int = 12) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    specials = ["<unk>", "<pad>", "<bos>", "<eos>"]
    tokenizer = wordlevel(
        specials, ("<bos>", "<eos>"), pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=10
    )
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 10, "eos_token_id": 3, "bos_token_id": 2}
    vision = {**size, "image_size": side, "patch_size": side // 2}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor.save_pretrained(folder)


def make_siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tokenizer = wordlevel(["<unk>", "<pad>", "<eos>"], ("", "<eos>"), pad_token="<pad>", eos_token="<eos>")
    tokenizer.model_max_length = 8
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 8, "projection_size": 16}
    SiglipModel(
        SiglipConfig(text_config=text, vision_config={**size, "image_size": 16, "patch_size": 8})
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)


def make_siglip2(folder: Path) -> None:
    import transformers

    if not hasattr(transformers, "Siglip2Tokenizer"):
        pytest.skip("the tiny SigLIP 2 is made with transformers 5")
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model, Siglip2Tokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"\N{LOWER ONE EIGHTH BLOCK}abcdefghinorstu"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Siglip2Tokenizer(vocab=vocab, merges=[], model_max_length=20, padding_side="right")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": 64, "max_position_embeddings": 20, "projection_size": 16}
    vision = {**size, "num_patches": 16, "patch_size": 4}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=4, max_num_patches=16).save_pretrained(folder)


def make_dinov2(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        num_register_tokens=3,
    )
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)


def make_bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    specials = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    tokenizer = wordlevel(
        specials, ("[CLS]", "[SEP]"), pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=12
    )
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        pad_token_id=1,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = wordlevel(["<unk>", "<bos>", "<eos>"], ("<bos>", ""), bos_token="<bos>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


MAKERS: dict[str, Maker] = {
    "clip": make_clip,
    "siglip": make_siglip,
    "siglip2": make_siglip2,
    "dinov2": make_dinov2,
    "bert": make_bert,
    "llama": make_llama,
}


def make_model(family: str, folder: Path) -> Path:
    """Save the small model of a family in MAKERS, with large random weights, so that errors are visible."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    MAKERS[family](folder)
    torch.set_rng_state(state)
    return folder
