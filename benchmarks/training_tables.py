"""Tables of docs/training.md and docs/data.md."""

from __future__ import annotations

from collections.abc import Callable

from table_text import load, table_of

MEASURES = (
    ("mean_recall@1", "R@1 %", 100, 1),
    ("mixed_image_recall@10", "mixed image-recall@10 %", 100, 1),
    ("gap/centroid", "gap", 1, 3),
    ("gap/cs", "D_CS", 1, 3),
    ("gap/probe_accuracy", "probe %", 100, 1),
)


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
    rows = []
    for record in load("balance")["records"]:
        cells = {title: f"{factor * record[key]:.{digits}f}" for key, title, factor, digits in MEASURES}
        rows.append({"weight of D_CS": record["weight"]} | cells)
    return table_of(rows)


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
