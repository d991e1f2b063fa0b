"""Deprecated import paths of version 0.1, which work with a DeprecationWarning until version 0.4."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> new module; the submodules of an entry move with it.
MOVED = {
    "csaligner.data": "csaligner.datasets",
    "csaligner.data.datasets": "csaligner.datasets",
    "csaligner.data.extract": "csaligner.store.embed",
    "csaligner.data.images": "csaligner.datasets.images.load",
    "csaligner.data.items": "csaligner.datasets.clean",
    "csaligner.data.samplers": "csaligner.training.samplers",
    "csaligner.data.split": "csaligner.datasets.split",
    "csaligner.data.store": "csaligner.store.store",
    "csaligner.data.training_data": "csaligner.training.training_data",
    "csaligner.decoders.door": "csaligner.decoders",
    "csaligner.decoders.kind": "csaligner.decoders",
    "csaligner.losses.feature_cache": "csaligner.training.gradcache",
    "csaligner.pairing": "csaligner.paired_features",
    "csaligner.parallel": "csaligner.distributed.loss",
    "csaligner.runs": "csaligner.pipeline",
    "csaligner.search.quickstart": "csaligner.quickstart",
}

# Module that was split -> where its other names are now.
SPLIT = {"csaligner.pipeline": "csaligner.run_folder"}

# Old name -> new name, in the modules above and in modules that did not move.
RENAMED = {"Kind": "PipelineAdapter", "ParallelCSAlignerLoss": "CSAlignerLoss", "Wish": "GenerationRequest"}


def renamed(module: str, name: str) -> Any:
    """Return the renamed `name` of `module`, for the module's `__getattr__`. Raises AttributeError."""
    if name not in RENAMED:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    _warn(f"{module}.{name}", f"{module}.{RENAMED[name]}", stacklevel=4)
    return getattr(sys.modules[module], RENAMED[name])


class _Finder(MetaPathFinder, Loader):
    """Finder of the modules of MOVED; as the last entry of sys.meta_path it is used only for missing modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if _new_path(fullname) else None

    def exec_module(self, module: ModuleType) -> None:
        path = _new_path(module.__name__)
        assert path is not None  # checked by find_spec
        target = importlib.import_module(path)
        _warn(module.__name__, path, stacklevel=3)

        def get(name: str) -> Any:
            if name in RENAMED:
                _warn(f"{module.__name__}.{name}", f"{path}.{RENAMED[name]}", stacklevel=3)
            known = RENAMED.get(name, name)
            if path in SPLIT and not hasattr(target, known):
                return getattr(importlib.import_module(SPLIT[path]), known)
            return getattr(target, known)

        module.__dict__["__getattr__"] = get


def install() -> None:
    """Make the old paths importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def _new_path(path: str) -> str | None:
    """Return the new path: the longest prefix of `path` in MOVED is replaced."""
    parts = path.split(".")
    for length in range(len(parts), 1, -1):
        if (old := ".".join(parts[:length])) in MOVED:
            return ".".join([MOVED[old], *parts[length:]])
    return None


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(f"{old} is deprecated, use {new}; version 0.4 removes it", DeprecationWarning, stacklevel)
