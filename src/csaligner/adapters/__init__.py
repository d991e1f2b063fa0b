"""Adapters: small trainable modules that map features into the aligned space, and the models that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .aligner import Aligner, AlignerConfig, align
    from .fusion import FusionChoice, choose_image_weight, fuse
    from .lora import LoRAAligner
    from .multi import MultiAligner, fit_joint_start

__all__ = [
    "Aligner",
    "AlignerConfig",
    "FusionChoice",
    "LoRAAligner",
    "MultiAligner",
    "align",
    "choose_image_weight",
    "fit_joint_start",
    "fuse",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "aligner": "Aligner AlignerConfig align",
        "fusion": "FusionChoice choose_image_weight fuse",
        "lora": "LoRAAligner",
        "multi": "MultiAligner fit_joint_start",
    },
)
