"""Experiment trackers (through accelerate) and JSON lines of metrics."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from csaligner.checks import InputError, check_choice

TRACKERS = ("tensorboard", "wandb", "trackio")


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for an unknown tracker, or if its package is not installed."""
    for name in names:
        check_choice("report_to", name, TRACKERS)
        alternatives = (name, "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(package) for package in alternatives):
            raise InputError(f"report_to: {name} is not installed; pip install {name}")


def check_used(wanted: Sequence[str], used: Sequence[Any]) -> None:
    """Raise InputError if accelerate silently skipped a tracker."""
    skipped = set(wanted) - {str(name) for name in used}
    if skipped:
        raise InputError(
            f"report_to: accelerate cannot use {sorted(skipped)[0]}; check the installation of its package"
        )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Flatten nested settings to `outer.inner` keys, as trackers expect."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, (str, int, float, bool)) else str(value)
    return found


def json_line(values: Mapping[str, float]) -> str:
    """Return one line of JSON; non-finite numbers become null."""
    return json.dumps(finite(values), allow_nan=False) + "\n"


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def read_values(values: Mapping[str, float | None]) -> dict[str, float]:
    """Invert `finite`: null becomes NaN."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
