"""Deprecated import path of csaligner 0.1: what was here is in csaligner.distributed.loss, the loss in csaligner."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from csaligner.distributed import loss

    return getattr(loss, name)
