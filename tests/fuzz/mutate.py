"""Mutations of valid inputs: bytes changed, cut, inserted and repeated; JSON and YAML fields replaced."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

# replacement values of fields
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, -1e308, 0.5, float("nan"), float("inf")),
    *("", " ", "x", "\x00", "a\x1b[31mb", "../../etc/passwd", "/etc/passwd", "/dev/zero", "é" * 300, "x" * 5000, "1"),
    *([], {}, [[]], [None], {"a": 1}, {"": None}, ["x"] * 3, [1, 2, 3], "img_emb/../../x.npy", "\ud800"),
)
BYTES = (b"\x00", b"\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x7f\xff\xff\xff", b"<", b"&", b"{", b"[", b'"')
SEALS = ("sha256", "config_sha256")  # an attacker would correct or remove them
TEXTS = {".json": "json", ".jsonl": "lines", ".jsonlines": "lines", ".yaml": "yaml"}


def mutate(path: Path, chance: random.Random) -> str:
    """Change one file at or below `path`; returns a description of the change."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        return "nothing"
    file = chance.choice(files)
    if file.suffix in TEXTS:
        _unseal(file)
        if chance.random() < 0.7:
            return f"{file.name}: {_field(file, chance)}"
    content = bytearray(file.read_bytes())
    done = [_bytes(content, chance) for _ in range(chance.choice((1, 1, 2, 4)))]
    file.write_bytes(bytes(content))
    return f"{file.name}: {', '.join(done)}"


def _bytes(content: bytearray, chance: random.Random) -> str:
    if not content:
        content += chance.choice(BYTES)
        return "filled"
    at = _place(len(content), chance)
    kind = chance.choice(("flip", "set", "cut", "insert", "double", "drop", "number", "zeros"))
    if kind == "flip":
        content[at] ^= 1 << chance.randrange(8)
    elif kind == "set":
        content[at] = chance.randrange(256)
    elif kind == "cut":
        del content[at:]
    elif kind == "insert":
        content[at:at] = chance.choice(BYTES) * chance.choice((1, 2, 1000))
    elif kind == "double":
        content[at:at] = content[at : at + chance.choice((4, 64, 512))]
    elif kind == "drop":
        del content[at : at + chance.choice((1, 4, 100))]
    elif kind == "number":
        value = chance.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, chance.randrange(1 << 32)))
        size = chance.choice((1, 2, 4, 8))
        part = (value % (1 << (8 * size))).to_bytes(size, chance.choice(("little", "big")))
        content[at : at + size] = part
    else:
        size = min(chance.choice((4, 16)), len(content) - at)
        content[at : at + size] = bytes(size)
    return f"{kind} at {at}"


def _place(size: int, chance: random.Random) -> int:
    """Draw a position, preferably in the header or footer."""
    third = chance.random()
    if third < 0.4:
        return chance.randrange(min(size, 256))
    return size - 1 - chance.randrange(min(size, 512)) if third < 0.6 else chance.randrange(size)


def _unseal(file: Path) -> None:
    if TEXTS[file.suffix] != "json":
        return
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return
    if isinstance(value, dict) and any(seal in value for seal in SEALS):
        file.write_text(json.dumps({k: v for k, v in value.items() if k not in SEALS}), encoding="utf-8")


def _field(file: Path, chance: random.Random) -> str:
    kind, text = TEXTS[file.suffix], file.read_text(encoding="utf-8", errors="replace")
    try:
        value = [json.loads(line) for line in text.splitlines()] if kind == "lines" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        return "left as it is"
    places = list(_places(value))
    if not places:
        return "left as it is"
    holder, key = chance.choice(places)
    words = chance.choice(("set", "set", "set", "remove", "add", "nest"))
    if words == "set":
        holder[key] = chance.choice(STRANGE)
    elif words == "remove":
        del holder[key]
    elif words == "add" and isinstance(holder, dict):
        holder[chance.choice(("surplus", "", "format_version", "0"))] = chance.choice(STRANGE)
    else:
        holder[key] = [holder[key]]
    if kind == "lines":
        text = "".join(json.dumps(line) + "\n" for line in value)
    else:
        text = json.dumps(value) if kind == "json" else yaml.safe_dump(value)
    file.write_text(text, encoding="utf-8", errors="replace")
    return f"{words} {key!r}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries):
        yield value, key
        yield from _places(inner)
