"""Listing of the files below a folder, with counts of the ignored ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from csaligner.datasets.images.load import HEIC, SUFFIXES
from csaligner.wording import count_of

from .text_files import counted

SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information"})
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})
INDEX_FILE = "index.json"
INDEX_TABLE = "images.lance"  # with INDEX_FILE, marks a folder as an index


@dataclass
class Listing:
    """files: sorted by path. refused: errors of folders that cannot be listed."""

    root: Path
    files: list[Path] = field(default_factory=list)
    refused: list[OSError] = field(default_factory=list)
    hidden: Counter[tuple[str, str]] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)

    @property
    def top(self) -> list[Path]:
        """The files directly in the root folder."""
        return [path for path in self.files if path.parent == self.root]

    def note(self, used: Container[Path]) -> tuple[str, ...]:
        """Return one line that counts, by suffix, the files not in `used`; empty if there are none."""
        suffixes = Counter(path.suffix.lower() or "without suffix" for path in self.files if path not in used)
        parts = [counted(suffixes)] if suffixes else []
        parts += [count_of(number, *what) for what, number in sorted(self.hidden.items())]
        if self.links:
            linked = count_of(len(self.links), "linked folder")
            parts.append(f"{linked} not followed (first: {self.links[0]}; see --follow-links)")
        if not parts:
            return ()
        lacking = HEIC & set(suffixes) - SUFFIXES
        return ("ignored: " + ", ".join(parts) + ("; HEIC needs pip install pillow-heif" if lacking else ""),)


def walk(root: Path, *, follow_links: bool = False) -> Listing:
    """List every file below `root` except hidden and system files (thumbnails, resource forks, recycle bins).

    follow_links: also list the folders that links point to, each folder once, so that cycles end.
    """
    listing, seen, todo = Listing(root), set[tuple[int, int]](), [root]
    while todo:
        for folder, names, files in os.walk(todo.pop(0), onerror=listing.refused.append):
            if not _first_visit(folder, seen) or _is_index(folder, files, listing):
                names.clear()
                continue
            names[:] = [name for name in sorted(names) if not _is_system(name, SYSTEM_FOLDERS, listing, "folder")]
            linked = [path for name in names if os.path.islink(path := os.path.join(folder, name))]
            if follow_links:
                todo += map(Path, linked)
            else:
                listing.links += [os.path.relpath(path, root) for path in linked]
            kept = [name for name in files if not _is_system(name, SYSTEM_FILES, listing, "file")]
            listing.files += [Path(folder, name) for name in kept]
    broken = [path for path in listing.files if not path.is_file()]  # broken links, sockets, pipes
    if broken:
        listing.hidden["link to nothing or special file", "links to nothing or special files"] = len(broken)
    listing.files = sorted(set(listing.files) - set(broken))
    return listing


def _first_visit(folder: str, seen: set[tuple[int, int]]) -> bool:
    stat = os.stat(folder)
    if (stat.st_dev, stat.st_ino) in seen:
        return False
    seen.add((stat.st_dev, stat.st_ino))
    return True


def _is_index(folder: str, files: list[str], listing: Listing) -> bool:
    found = INDEX_FILE in files and os.path.isdir(os.path.join(folder, INDEX_TABLE))
    listing.hidden += Counter({("folder that holds an index", "folders that hold an index"): int(found)})
    return found


def _is_system(name: str, known: frozenset[str], listing: Listing, what: str) -> bool:
    found = name.startswith(".") or name.lower() in known
    listing.hidden += Counter({(f"hidden or system {what}", f"hidden or system {what}s"): int(found)})
    return found
