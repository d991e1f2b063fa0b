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


def inputs_table() -> str:
    cases = load("inputs")["situations"]
    kinds = list(dict.fromkeys(case["kind"] for case in cases))
    cases = sorted(cases, key=lambda case: kinds.index(case["kind"]))
    wrong = sum(bool(case["wrong"]) for case in cases)
    rows = []
    for case in cases:
        counts = [case[name] for name in ("images", "captions", "unusable")]
        told = case["told"].replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
        rows.append([case["kind"], case["name"], *("" if n is None else n for n in counts), told[:160]])
    head = f"{len(cases)} situations, {wrong} with a wrong result.\n\n"
    return head + table(["kind", "situation", "images", "captions", "unusable", "report"], rows)


def mixed_table() -> str:
    found = load("inputs")["mixed"]
    head = (
        f"{found['files']:,} files, 5 % of them odd, of {found['kinds_of_odd_files']} kinds; "
        f"{found['unaccounted']} not accounted for. `embed` took {found['seconds']['embed']:.0f} seconds, `index` "
        f"{found['seconds']['index']:.0f}.\n\n"
    )
    kinds = {
        "image": "images",
        "captions": "files of captions",
        "document": "documents",
        "unreadable": "unreadable files",
        "ignored": "ignored files",
    }
    rows = [
        [name, *(found[which].get(kind, 0) for which in ("made", "index", "embed"))] for kind, name in kinds.items()
    ]
    rows.append(["all", *(sum(found[which].values()) for which in ("made", "index", "embed"))])
    return head + table(["", "written", "reported by `index`", "reported by `embed`"], rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "bad_inputs": bad_inputs_table,
    "fuzz": fuzz_table,
    "inputs": inputs_table,
    "mixed": mixed_table,
}
