"""Near-duplicates of OpenMoji, Tux Paint and Open Clip Art by image features, and how many of them a split divides.

    python benchmarks/near_duplicates.py --store STORE --groups src/csaligner/assets/near_duplicates/groups.json \
        --out benchmarks/results/near_duplicates.json

STORE: `csaligner embed --data all`. Two images of one source are near-duplicates if their features (EfficientNet-Lite0)
have a cosine above THRESHOLD; sets of near-duplicates are connected components. --groups also writes the sets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn.functional import normalize

from csaligner.datasets import open_dataset
from csaligner.datasets.near_duplicates import connected, merge_groups
from csaligner.datasets.split import split_of
from csaligner.files import write_json, write_text
from csaligner.run_folder import provenance
from csaligner.store.store import Store
from csaligner.types import SPLITS

THRESHOLD = 0.95
SOURCES = ("openmoji", "tuxpaint", "openclipart")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/near_duplicates.json"))
    parser.add_argument("--groups", type=Path, help="write the sets of near-duplicates to this file")
    options = parser.parse_args()
    store = Store.open(options.store)
    parts = [store.features(split) for split in SPLITS]
    ids = [name for part in parts for name in part.image_ids]
    rows = normalize(torch.cat([part.image for part in parts]), dim=1)
    known = set(ids)
    pairs: list[tuple[str, str]] = []
    for source in SOURCES:
        mine = [row for row, name in enumerate(ids) if name.startswith(f"{source}/")]
        close = (rows[mine] @ rows[mine].T > THRESHOLD).triu(diagonal=1)
        pairs += [(ids[mine[a]], ids[mine[b]]) for a, b in close.nonzero().tolist()]
    sets = sorted(sorted(names) for names in connected(pairs))
    if options.groups:
        lines = ",\n".join(f"  {str(names).replace(chr(39), chr(34))}" for names in sets)
        write_text(options.groups, f'{{"threshold": {THRESHOLD},\n "groups": [\n{lines}\n]}}\n')
    records = []
    for how in ("before", "after"):
        items = [
            i for name in SOURCES for i in open_dataset(name, near_duplicates=False).items() if i.image_id in known
        ]
        grouped = merge_groups(items, sets) if how == "after" else items
        split = {item.image_id: split_of(item.group) for item in grouped}
        near = {name for pair in pairs for name, other in (pair, pair[::-1]) if split[other] == "train"}
        for source in SOURCES:
            tests = [name for name, part in split.items() if part == "test" and name.startswith(f"{source}/")]
            twins = sum(name in near for name in tests)
            records.append({"grouping": how, "source": source, "test_images": len(tests), "with_twin_in_train": twins})
            print(records[-1])
    write_json(options.out, {"provenance": provenance(0), "threshold": THRESHOLD, "records": records})


if __name__ == "__main__":
    main()
