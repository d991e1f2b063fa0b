"""Numbers for people's dashboards, through accelerate's trackers, and the JSON lines that are always written."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from csaligner.checks import InputError, check_choice

TRACKERS = ("tensorboard", "wandb", "trackio")


def check_trackers(names: Sequence[str]) -> None:
    """InputError for a tracker that is not known or whose package is not installed."""
    for name in names:
        check_choice("report_to", name, TRACKERS)
        alternatives = (name, "tensorboardX") if name == "tensorboard" else (name,)
        if not any(importlib.util.find_spec(package) for package in alternatives):
            raise InputError(f"report_to: {name} is not installed; pip install {name}")


def check_used(wanted: Sequence[str], used: Sequence[Any]) -> None:
    """InputError where accelerate has left out a tracker, which it does without a word."""
    left_out = set(wanted) - {str(name) for name in used}
    if left_out:
        raise InputError(f"report_to: accelerate cannot use {sorted(left_out)[0]}; is the package installed whole?")


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested settings as one level of `outer.inner` keys, which trackers take."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, (str, int, float, bool)) else str(value)
    return found


def json_line(values: Mapping[str, float]) -> str:
    """One line of JSON; what is no finite number is null."""
    return json.dumps(finite(values), allow_nan=False) + "\n"


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def read_values(values: Mapping[str, float | None]) -> dict[str, float]:
    """What `finite` made, null as NaN."""
    return {name: math.nan if value is None else float(value) for name, value in values.items()}
