"""Tables of docs/trust.md on bad inputs, from the JSON that `make fuzz` writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def bad_inputs_table() -> str:
    cases = json.loads((RESULTS / "bad_inputs.json").read_text(encoding="utf-8"))["cases"]
    lines = ["| input | what it tries | what happened | seconds | MB |", "| --- | --- | --- | --- | --- |"]
    for case in cases:
        text = case["text"].replace("|", "\\|").replace("<", "&lt;")
        happened = f"refused: {text[:160]}" if case["outcome"] == "refused" else f"read; {case['harmless']}"
        lines.append(f"| {case['kind']} | {case['tries']} | {happened} | {case['seconds']} | {case['megabytes']} |")
    return "\n".join(lines)


def fuzz_table() -> str:
    found = json.loads((RESULTS / "fuzz.json").read_text(encoding="utf-8"))
    total = sum((Counter(counts) for counts in found["counts"].values()), Counter())
    head = (
        f"{sum(total.values()):,} changed inputs in {found['seconds']:.0f} seconds (seed {found['seed']}): "
        f"{total['read']:,} were read all the same, {total['refused']:,} refused in one line, "
        f"{sum(total.values()) - total['read'] - total['refused']} anything else.\n\n"
    )
    lines = ["| reader | read | refused | anything else |", "| --- | --- | --- | --- |"]
    for name, counts in found["counts"].items():
        read, refused = counts.get("read", 0), counts.get("refused", 0)
        lines.append(f"| {name} | {read} | {refused} | {sum(counts.values()) - read - refused} |")
    return head + "\n".join(lines)


TABLES: Mapping[str, Callable[[], str]] = {"bad_inputs": bad_inputs_table, "fuzz": fuzz_table}
