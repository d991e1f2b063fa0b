"""The table on the first screen of the README, and the lines that install csaligner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import mean

from table_text import load, table

ON_INDEX = False  # whether the package can be installed by name; set on the day of the first release, then `make docs`
BEFORE = "csaligner is not on a package index yet. In a clone, or with the path of a wheel instead of the dot:"

ROWS = {
    "raw": "as they are",
    "mean-centring": "minus the mean of each modality",
    "closed-form start": "`CSAligner(epochs=0)`, the start without training",
    "CS-Aligner": "`CSAligner()`",
}
COLUMNS = {  # metric: heading, format of the value in percent
    "text_to_image_recall@1": ("right image first, %", "{:.0f}"),
    "mixed_image_recall@10": ("right image in a mixed top 10, %", "{:.0f}"),
    "modality_bias@10": ("bias towards texts, points", "{:+.0f}"),
}


def clip_table() -> str:
    """Return the rows of the five folds on CLIP features, means over the seeds."""
    records = load("clip_coco")["records"]
    rows = []
    for method, shown in ROWS.items():
        mine = [r for r in records if r["method"] == method]
        rows.append([shown, *(form.format(100 * mean(r[key] for r in mine)) for key, (_, form) in COLUMNS.items())])
    return table(["CLIP embeddings", *(heading for heading, _ in COLUMNS.values())], rows)


def install_lines(*extras: tuple[str, str]) -> str:
    """Return the commands for each list of extras, with a comment on what it adds."""
    package = "csaligner" if ON_INDEX else "."
    commands = [f"pip install '{package}[{names}]'" if names else f"pip install {package}" for names, _ in extras]
    width = max(map(len, commands))
    lines = [f"{c:{width}}  # {about}" if about else c for c, (_, about) in zip(commands, extras, strict=True)]
    block = "\n".join(["```bash", *lines, "```"])
    return block if ON_INDEX else f"{BEFORE}\n\n{block}"


TABLES: dict[str, Callable[[], str]] = {
    "readme_clip": clip_table,
    "install_any": partial(install_lines, ("", "arrays in, arrays out"), ("bundled,search,app", "photos, search page")),
    "install_search": partial(install_lines, ("bundled,search,app", "")),
    "install_generate": partial(install_lines, ("bundled,generate", "")),
}
