"""What the pages need beside their own text: files of the repository's root, and the JSON behind the tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
FROM_THE_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "security.md": "SECURITY.md"}
FENCE = re.compile(r"(?m)^(```\w+) .*$")  # words for the tests of the code blocks, which the site cannot read
RESULTS = Path("benchmarks/results")


def on_files(files: Any, config: Any) -> Any:
    for path in sorted((ROOT / RESULTS).glob("*.json")):
        files.append(File.generated(config, f"{RESULTS}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links are written as they work in the repository; here the folder docs is the root."""
    name = page.file.src_uri
    if name in FROM_THE_ROOT:
        return (ROOT / FROM_THE_ROOT[name]).read_text(encoding="utf-8").replace("](docs/", "](")
    markdown = FENCE.sub(r"\1", markdown)
    for here, there in FROM_THE_ROOT.items():
        markdown = markdown.replace(f"](../{there}", f"]({here}")
    return markdown.replace(f"](../{RESULTS}/", f"]({RESULTS}/")
