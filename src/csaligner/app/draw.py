"""Image generation from the texts of the search page."""

from __future__ import annotations

import threading
from collections.abc import Callable

from PIL import Image

from csaligner.checks import InputError
from csaligner.decoders.decoder import default_sampling, read_contract
from csaligner.generation.generate import MICRO, GenerationRequest, enlarge, generate
from csaligner.generation.text import TextToEmbedding, bundled_run
from csaligner.model import AlignedModel

from .handlers import Generator

DRAWN_PIXELS = 256


def drawer(model: AlignedModel, decoder: str, tell: Callable[[str], object]) -> Generator:
    """Return a function that generates one image at a time, since a decoder uses the whole machine.

    model: the aligner of the index, whose text adapter is used. If it does not fit the micro decoder, the bundled
    aligner of that decoder is used, and `tell` is called with the reason.

    Raises InputError if the model does not fit another decoder.
    """
    text = _text_of(model, decoder, tell)
    lock = threading.Lock()

    def draw(words: str, seed: int) -> Image.Image:
        with lock:
            sampling = default_sampling(decoder, seed=seed)
            found = generate(GenerationRequest((words,)), run=text, decoder=decoder, sampling=sampling)
            return enlarge(found[0][0], DRAWN_PIXELS)

    return draw


def _text_of(model: AlignedModel, decoder: str, tell: Callable[[str], object]) -> TextToEmbedding:
    try:
        text = TextToEmbedding(model)
        text.check(read_contract(decoder))
    except InputError as error:
        if decoder != MICRO:
            raise
        tell(f"decoder: the aligner of the index does not fit ({error}); generating with the decoder's bundled aligner")
        return TextToEmbedding.open(bundled_run())
    return text
