"""Losses of a batch of embeddings: InfoNCE, the CS-Aligner objective and its variants."""

from __future__ import annotations

from .infonce import info_nce
from .modalities import ModalitiesLoss
from .objective import Objective
from .paired import paired_l2
from .random_alignment import random_alignment
from .siglip import siglip
from .token import token_cauchy_schwarz

__all__ = [
    "ModalitiesLoss",
    "Objective",
    "info_nce",
    "paired_l2",
    "random_alignment",
    "siglip",
    "token_cauchy_schwarz",
]
