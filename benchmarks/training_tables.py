"""Tables of docs/training.md and docs/data.md."""

from __future__ import annotations

from collections.abc import Callable

from measures import measures_table
from table_text import load, table_of


def big_store_table() -> str:
    content = load("big_store")
    s, f, m = content["setting"], content["figures"], content["machine"]
    cells = {
        "pairs": f"{s['rows']:,}",
        "dimensions": s["dim"],
        "store": f"{s['store_mb'] / 1024:.2f} GiB",
        "batch": s["batch"],
        "steps": f"{f['steps']:.0f}",
        "peak resident memory": f"{f['peak_mb'] / 1024:.2f} GiB",
        "waiting for data": f"{100 * f['data_wait_share']:.2f} %",
    }
    return f"{m['cpu']}, {m['threads']} thread(s), load {m['load']} at the end.\n\n" + table_of([cells])


def balance_table() -> str:
    records = load("balance")["records"]
    rows = {r["weight"]: {k: v for k, v in r.items() if isinstance(v, float)} for r in records}
    return measures_table(rows, {}).replace("| method |", "| weight of D_CS |", 1)


def embed_table() -> str:
    content = load("embed")
    m, median = content["machine"], content["median"]
    cells = {
        "pictures": content["pictures"],
        "encoder only, images/s": f"{median['own']:.1f}",
        "`embed`, images/s": f"{median['embed']:.1f}",
        "share": f"{100 * content['share_of_own_rate']:.0f} %",
        "encoder only, one batch per core": f"{median['own_streams']:.1f}",
        "reading and decoding, core ms": f"{content['decode_ms']:.1f}",
        "encoding, core ms": f"{content['encode_ms']:.1f}",
    }
    return f"{m['cpu']}, {m['threads']} threads, load {m['load']} at the end.\n\n" + table_of([cells])


TABLES: dict[str, Callable[[], str]] = {
    "big_store": big_store_table,
    "balance": balance_table,
    "embed": embed_table,
}
