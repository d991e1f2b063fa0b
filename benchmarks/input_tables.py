"""Tables of docs/trust.md on invalid inputs, from the JSON written by `make fuzz`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from table_text import load, table


def bad_inputs_table() -> str:
    cases = load("bad_inputs")["cases"]
    rows = []
    for case in cases:
        text = case["text"].replace("|", "\\|").replace("<", "&lt;")
        happened = f"refused: {text[:160]}" if case["outcome"] == "refused" else f"read; {case['harmless']}"
        rows.append([case["kind"], case["tries"], happened, case["seconds"], case["megabytes"]])
    return table(["input", "attack", "result", "seconds", "MB"], rows)


def fuzz_table() -> str:
    found = load("fuzz")
    total = sum((Counter(counts) for counts in found["counts"].values()), Counter())
    head = (
        f"{sum(total.values()):,} changed inputs in {found['seconds']:.0f} seconds (seed {found['seed']}): "
        f"{total['read']:,} were read, {total['refused']:,} rejected with a one-line error, "
        f"{sum(total.values()) - total['read'] - total['refused']} had another result.\n\n"
    )
    rows = []
    for name, counts in found["counts"].items():
        read, refused = counts.get("read", 0), counts.get("refused", 0)
        rows.append([name, read, refused, sum(counts.values()) - read - refused])
    return head + table(["reader", "read", "refused", "anything else"], rows)


TABLES: Mapping[str, Callable[[], str]] = {"bad_inputs": bad_inputs_table, "fuzz": fuzz_table}
