"""The public names, and that importing them costs nobody a package that they do not use."""

from __future__ import annotations

import subprocess
import sys

import csaligner

HEAVY = "transformers diffusers sentence_transformers gradio lancedb ray triton sklearn matplotlib accelerate pyarrow"


def test_every_public_name_is_there_and_says_what_it_does() -> None:
    for name in csaligner.__all__:
        assert (getattr(csaligner, name).__doc__ or "").strip(), name
    assert set(csaligner.__all__) <= set(dir(csaligner))
    assert not hasattr(csaligner, "no_such_name")


def test_importing_pulls_in_no_heavy_package() -> None:
    code = (
        "import sys, csaligner; [getattr(csaligner, n) for n in csaligner.__all__];"
        f"print(sorted(set({HEAVY!r}.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
