"""A situation: files as people bring them, a command, and the right result."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support import odd_files
from tests.support.commands import csaligner

Make = Callable[[Path], Sequence[object]]


@dataclass(frozen=True)
class Result:
    """images, captions: usable ones; unusable: invalid, missing and unreadable ones; told: the note, or the first
    reason or error."""

    images: int | None = None
    captions: int | None = None
    unusable: int | None = None
    told: str = ""


@dataclass(frozen=True)
class Situation:
    """kind: chapter of the table. make: writes files into a folder and returns the arguments of `csaligner`. wanted:
    the counts that must come out. says: pattern that the report must contain; "" for silence."""

    kind: str
    name: str
    make: Make
    wanted: tuple[int, int, int] | None
    says: str = ""

    def run(self, folder: Path) -> tuple[Result, str]:
        """Return the result, and what is wrong with it ("" if nothing is)."""
        words = list(self.make(folder))
        done = csaligner(*words, folder=folder)
        text = done.stdout + done.stderr
        if "Traceback" in text or "please report" in text or done.returncode not in (0, 1):
            return Result(told=text), f"exit code {done.returncode}: {text}"
        result = _checked(done.stdout, done.stderr) if words[0] == "check-data" else _other(done)
        result = Result(**asdict(result) | {"told": _plain(result.told, folder)})
        wrong = []
        if self.wanted is not None and (result.images, result.captions, result.unusable) != self.wanted:
            wrong.append(f"wanted {self.wanted}, got {result}")
        if bool(self.says) != bool(result.told) or not re.search(self.says, result.told):
            wrong.append(f"wanted {self.says!r}, told {result.told!r}")
        if len(result.told) > 700 or "\n" in result.told:
            wrong.append(f"too long: {result.told}")
        return result, "; ".join(wrong)


def _checked(out: str, err: str) -> Result:
    """Return the result of check-data --json."""
    if not out:
        return Result(told=_error(err))
    found: dict[str, Any] = json.loads(out)
    bad = [found[name] for name in ("broken_records", "missing", "unreadable", "ids_of_two_pictures")]
    reasons = [example for finding in bad for example in finding["examples"]]
    told = "; ".join([*reasons[:1], *found["notes"]])
    return Result(found["images"], found["captions"], sum(finding["count"] for finding in bad[:3]), told)


def _other(done: Any) -> Result:
    lines = done.stderr.splitlines()
    return Result(told=_error(done.stderr) if done.returncode else "; ".join(lines))


def _error(err: str) -> str:
    return next((line.removeprefix("csaligner: ") for line in err.splitlines() if line.startswith("csaligner: ")), err)


def _plain(text: str, folder: Path) -> str:
    """Return a message without the temporary folder and very long words."""
    text = text.replace(f"{folder}/", "").replace(str(folder), ".")
    return re.sub(r"(\S)\1{30,}", r"\1...", text)


def check(*words: object) -> list[object]:
    return ["check-data", *words, "-q", "--json", "--workers", "0"]


def folder_with(name: str, change: Callable[[Path], object]) -> Make:
    """Return a maker of the folder `name` with 20 images and captions, and a change."""

    def make(root: Path) -> list[object]:
        change(odd_files.patterns(root / name))
        return check(name)

    return make


def table_with(name: str, content: str | bytes, *options: object) -> Make:
    """Return a maker of a table next to a folder p of 20 images with captions."""

    def make(root: Path) -> list[object]:
        odd_files.patterns(root / "p")
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return check(name, "--image-root", "p", *options)

    return make


def tar_with(*members: tuple[str, bytes | str]) -> Make:
    """Return a maker of a tar; a member with the content "jpg" is an image."""

    def make(root: Path) -> list[object]:
        image = (odd_files.patterns(root / "p") / "img00.jpg").read_bytes()
        contents = [(name, image if content == "jpg" else content) for name, content in members]
        odd_files.tar(root / "a.tar", [(n, c.encode() if isinstance(c, str) else c) for n, c in contents])
        shutil.rmtree(root / "p")
        return check("a.tar")

    return make
