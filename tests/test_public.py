"""Public API: importable names, import time, and names used in the documentation."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

import csaligner
from csaligner._deprecated import MOVED
from csaligner.checks import InputError

ROOT = Path(__file__).parents[1]
HEAVY = "transformers diffusers sentence_transformers gradio lancedb ray triton sklearn matplotlib accelerate pyarrow"
PACKAGES = sorted(
    m.name for m in pkgutil.iter_modules(csaligner.__path__) if m.ispkg and m.name not in ("cli", "assets")
)
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.py")),
]


def there(module: ModuleType, name: str) -> bool:
    """False for a class of a package that is not installed."""
    try:
        getattr(module, name, None)
    except InputError:
        return False
    return True


def test_every_public_name_is_there_and_documented() -> None:
    for name in csaligner.__all__:
        assert (getattr(csaligner, name).__doc__ or "").strip(), name
    assert set(csaligner.__all__) <= set(dir(csaligner))
    assert not hasattr(csaligner, "no_such_name")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_exports_its_names(package: str) -> None:
    module = importlib.import_module(f"csaligner.{package}")
    assert len(set(module.__all__)) == len(module.__all__)
    for name in filter(lambda name: there(module, name), module.__all__):
        for _ in range(2):  # importing the submodule must not replace it
            assert not isinstance(getattr(module, name), ModuleType), name
    with pytest.raises(ImportError, match="no_such_name"):
        exec(f"from csaligner.{package} import no_such_name")


def test_importing_pulls_in_no_heavy_package() -> None:
    code = (
        "import sys, csaligner; print('torch' in sys.modules);[getattr(csaligner, n) for n in csaligner.__all__];"
        f"print(sorted(set({HEAVY!r}.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "[]"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documentation_imports_nothing_deeper_than_one_level(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:from|import) csaligner\.\w+\.[\w.]+", text)
    for module, names in re.findall(r"^\s*(?:>>> )?from (csaligner(?:\.\w+)?) import ([\w, ]+)", text, re.MULTILINE):
        for name in names.split(","):
            found = importlib.import_module(module)
            assert not there(found, name.strip()) or hasattr(found, name.strip()), f"{module}: {name}"


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_earlier_modules_still_import_with_a_warning(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=re.escape(new)) as caught:
        importlib.import_module(old)
    assert any(warning.filename == __file__ or "importlib" in warning.filename for warning in caught)


def test_earlier_names_are_the_things_of_now() -> None:
    shown = {  # import lines of the pages of version 0.1
        "csaligner.data.datasets.huggingface": "HuggingFace",
        "csaligner.data.datasets.tuxpaint": "TuxPaint",
        "csaligner.data.datasets": "open_dataset",
        "csaligner.data.images": "load_image",
        "csaligner.data.items": "clean_items",
        "csaligner.data.split": "item_split",
        "csaligner.data.store": "Store",
        "csaligner.decoders.door": "Decoder Sampling open_decoder",
        "csaligner.decoders.kind": "Kind Sampling",
        "csaligner.distributed": "rank gather_rows",
        "csaligner.generation.generate": "Wish generate",
        "csaligner.losses.feature_cache": "cached_features",
        "csaligner.parallel": "ParallelCSAlignerLoss",
        "csaligner.runs": "embed_dataset train evaluate_run provenance",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for module, names in shown.items():
            for name in names.split():
                assert callable(getattr(importlib.import_module(module), name)), f"{module}.{name}"
        from csaligner.data.store import Store  # type: ignore[import-not-found]
        from csaligner.decoders.kind import Kind  # type: ignore[import-not-found]
    assert Store is csaligner.Store
    assert Kind is importlib.import_module("csaligner.decoders").PipelineAdapter
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("csaligner.data.no_such_module")
