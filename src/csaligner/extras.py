"""The pip command that adds an extra to this installation."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

PROJECT = Path(__file__).parents[2]


def install_command(extra: str) -> str:
    """Return `pip install ...` that adds `extra`, from where csaligner was installed: a clone, a wheel, git, an index.

    pip records the place in direct_url.json (PEP 610); an installation from a package index has no such file.
    """
    try:
        recorded = json.loads(distribution("csaligner").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):  # run from the sources, or a file that is not JSON
        recorded = {"url": PROJECT.as_uri(), "dir_info": {"editable": True}} if _is_clone(PROJECT) else {}
    return "pip install " + _requirement(recorded, extra)


def _requirement(recorded: dict[str, Any], extra: str) -> str:
    name, url = f"csaligner[{extra}]", recorded.get("url", "")
    if urlsplit(url).scheme == "file":
        path = Path(url2pathname(urlsplit(url).path))
        if path.is_file() or _is_clone(path):
            editable = recorded.get("dir_info", {}).get("editable", False)
            return ("--editable " if editable else "") + shlex.quote(f"{path}[{extra}]")
    elif url:
        tool = recorded.get("vcs_info", {}).get("vcs")
        return shlex.quote(f"{name} @ {tool}+{url}" if tool else f"{name} @ {url}")
    return shlex.quote(name)


def _is_clone(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file()
