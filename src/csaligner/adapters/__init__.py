"""Adapters: small trainable modules that map features into the aligned space, and the models that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csaligner._lazy import lazy_exports

if TYPE_CHECKING:
    from .aligner import Aligner, AlignerConfig, align
    from .lora import LoRAAligner
    from .multi import MultiAligner, fit_joint_start

__all__ = [
    "Aligner",
    "AlignerConfig",
    "LoRAAligner",
    "MultiAligner",
    "align",
    "fit_joint_start",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "aligner": "Aligner AlignerConfig align",
        "lora": "LoRAAligner",
        "multi": "MultiAligner fit_joint_start",
    },
)
