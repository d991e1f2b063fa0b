"""Differences between a finished store and a dataset."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from csaligner.datasets.images.source import file_of, to_uri
from csaligner.datasets.split import item_split
from csaligner.types import Item

from .manifest import MANIFEST, Skipped
from .store import Store


@dataclass
class Difference:
    """Differences between a store and a dataset. kept: image id -> its rows in the store, for unchanged items; new,
    changed: items to embed; removed: ids of the store that the dataset lacks; still_bad: images that were skipped
    before and have not changed."""

    kept: dict[str, list[int]] = field(default_factory=dict)
    new: list[Item] = field(default_factory=list)
    changed: list[Item] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    still_bad: dict[str, Skipped] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The numbers of new, changed and removed items, each with an example."""
        found = {"new": [i.image_id for i in self.new], "changed": [i.image_id for i in self.changed]}
        found["no longer in the data"] = self.removed
        return ", ".join(f"{len(ids)} {what} (first: {ids[0]})" for what, ids in found.items() if ids)


def difference(store: Store, items: Sequence[Item]) -> Difference:
    """Compare the items of a dataset with a finished store.

    An item is unchanged if its id, path, captions, group and split are the same and its file was not written, renamed
    or copied after the store was finished. If the store is from the future, because the clock was changed, every item
    with a file counts as changed.
    """
    made = (store.path / MANIFEST).stat().st_mtime_ns
    if made > time.time_ns():  # the clock was ahead then, or is behind now: no time of a file tells anything
        made = 0
    rows: defaultdict[str, list[int]] = defaultdict(list)
    names = ("image_id", "image_path", "split", "group", "caption")
    columns = [store.column(name) for name in names]
    for row, image_id in enumerate(columns[0]):
        rows[image_id].append(row)
    skipped = {entry.image_id: entry for entry in store.manifest.skipped}
    found, seen = Difference(), set[str]()
    for item in items:
        name = item.image_id
        seen.add(name)
        if name in rows:
            captions = item.captions if "text" in store.sides else ("",)
            wanted = [(to_uri(item.image), item_split(item), item.group, caption) for caption in captions]
            held = [tuple(column[row] for column in columns[1:]) for row in rows[name]]
            if held == wanted and not _newer(item, made):
                found.kept[name] = rows[name]
            else:
                found.changed.append(item)
        elif name in skipped and skipped[name].path == str(item.image) and not _newer(item, made):
            found.still_bad[name] = skipped[name]
        else:
            found.new.append(item)
    found.removed = [name for name in (*rows, *skipped) if name not in seen]
    return found


def _newer(item: Item, made: int) -> bool:
    try:
        stat = file_of(item.image).stat()
    except (OSError, ValueError):  # no file, for example of a text
        return False
    return max(stat.st_mtime_ns, stat.st_ctime_ns) > made
