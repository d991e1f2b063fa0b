"""Frozen models that turn pictures and captions into features, and the door to them."""

from __future__ import annotations

from typing import cast

from csaligner.registry import ENCODERS, load
from csaligner.types import Encoder


def open_encoder(name: str) -> Encoder:
    """The encoder of that name, ready to use; an unknown name is an InputError with the nearest known one."""
    return cast(Encoder, load("encoder", ENCODERS, name)())
