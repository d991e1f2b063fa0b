"""Ten queries and their first five results, with the aligner of the first quickstart and with today's.

    python benchmarks/ten_queries.py [--share FOLDER] [--out FILE]

The images are the captioned photographs and the photographic stamps that photo_sets.py names, with their captions;
without the packages of photo_sets.py, --share is the /usr/share of a folder into which they were unpacked. Settings:

- no captions, before: the first bundled aligner, read from the git history (it was trained on drawings)
- no captions: today's bundled aligner
- captions, before: with captions.csv, so that a caption can match, too; first bundled aligner
- captions: the same with what quickstart chooses: it trains, and compares with the bundled aligner
- tiny CLIP: a CLIP of random weights, to show that it runs; its results mean nothing

A result counts as right if its caption contains one of the words listed for the query. The queries were written before
the results were seen; the words were completed afterwards, from the results of all settings. --judge applies them to
the results in the file, without a search. The output is a JSON file with the captions of the five results of every
query. The settings of today's bundled aligner were chosen on these photographs (photos.py), so the difference is not
what other photographs give.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import describe
from photo_sets import SHARE, captioned, stamps

from csaligner.model import ASSET
from csaligner.quickstart import QuickstartSettings, quickstart
from csaligner.search.build import BuildSettings, build_index
from csaligner.search.cards import search_cards
from csaligner.search.feature_cache import FeatureCache
from csaligner.search.index import Index

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "ten_queries.json"
FIRST = "a962c54"  # the commit of the first bundled aligner
SIDE, TOP = 640, 5
QUERIES = {
    "a bird on a branch": (
        "bird",
        "robin",
        "toucan",
        "owl",
        "parrot",
        "magpie",
        "lark",
        "rosella",
        "pigeon",
        "heron",
        "lorikeet",
        "chicken",
    ),
    "a boat on the water": ("boat", "ship", "canoe", "ferry", "yacht", "kayak"),
    "something sweet to eat": ("cake", "cookie", "chocolate", "candy", "pie", "doughnut", "ice cream", "biscuit"),
    "fresh fruit": (
        "apple",
        "banana",
        "orange",
        "grape",
        "strawberr",
        "pear",
        "fruit",
        "lemon",
        "cherr",
        "melon",
        "mango",
        "apricot",
        "pineapple",
        "kiwi",
    ),
    "a musical instrument": (
        "guitar",
        "piano",
        "violin",
        "drum",
        "trumpet",
        "flute",
        "instrument",
        "cello",
        "musician",
    ),
    "an animal that lives in the sea": (
        "fish",
        "seahorse",
        "dolphin",
        "whale",
        "crab",
        "shark",
        "starfish",
        "seal ",
        "trout",
        "octopus",
    ),
    "a famous building": (
        "tower",
        "cathedral",
        "temple",
        "church",
        "palace",
        "castle",
        "pyramid",
        "abbey",
        "skyscraper",
    ),
    "mountains with snow": ("mountain", "snow", "peak", "alps", "glacier"),
    "a child with a friend": ("child", "boy", "girl", "kid", "friend", "people", "woman", "man "),
    "a road at night": ("road", "street", "night", "highway", "motorway"),
}


def write_photos(folder: Path, share: Path, *, captions: bool) -> int:
    """Write the photographs as JPEG files, and captions.csv if wanted; returns their number."""
    folder.mkdir(parents=True)
    rows = [("image", "caption")]
    for number, (image, caption) in enumerate([*captioned(share), *stamps(share)]):
        small = image.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        small.save(folder / f"{number:04}.jpg", quality=90)
        rows.append((f"{number:04}.jpg", caption))
    if captions:
        with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    return len(rows) - 1


def first_aligner(folder: Path) -> Path:
    """Write the first bundled aligner from the git history."""
    name = ASSET.relative_to(ROOT).as_posix()
    archive = subprocess.run(["git", "archive", FIRST, name], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / name


def answers(index: Index, words: dict[str, str]) -> dict[str, list[str]]:
    """Return the captions of the five best images of each query. words: captions by image id."""
    found = {query: search_cards(index, query, TOP) for query in QUERIES}
    return {query: [words[card.id] for card in cards] for query, cards in found.items()}


def right(found: dict[str, list[str]]) -> dict[str, list[bool]]:
    """Return which of the results of each query are right."""
    return {q: [any(word in f"{text} ".lower() for word in QUERIES[q]) for text in texts] for q, texts in found.items()}


def tiny_clip(folder: Path) -> Path:
    """Write a CLIP of random weights in the format of the Hub."""
    sys.path.insert(0, str(ROOT))
    from tests.support.models import make_model

    folder.mkdir(parents=True)
    make_model("clip", folder)
    return folder


def measure(share: Path, work: Path) -> dict[str, dict[str, list[str]]]:
    """Return the answers of every setting."""
    bare, full = work / "bare", work / "full"
    write_photos(bare, share, captions=False)
    write_photos(full, share, captions=True)
    with (full / "captions.csv").open(encoding="utf-8", newline="") as file:
        words = {Path(row["image"]).stem: row["caption"] for row in csv.DictReader(file)}
    before = str(first_aligner(work / "history"))
    found = {}
    settings = {"no captions": (bare, None), "captions": (full, None), "tiny CLIP": (bare, tiny_clip(work / "clip"))}
    for name, (data, encoder) in settings.items():
        out = work / f"out-{name.replace(' ', '-')}"
        how = QuickstartSettings((f"hf:{encoder}", f"hf:{encoder}") if encoder else None)
        result = quickstart(data, out, print, lambda title: lambda *_: None, how)
        if encoder is None:
            cache = BuildSettings(cache=FeatureCache(out / "features"))
            old, _ = build_index(str(data), work / f"old-{name}", before, settings=cache)
            found[f"{name}, before"] = answers(old, words)
        found[name] = answers(result.index, words)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=Path, default=SHARE)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--judge", action="store_true", help="count the right results of an existing file again")
    options = parser.parse_args(arguments)
    if options.judge:
        write(json.loads(options.out.read_text(encoding="utf-8")), options.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.share, Path(folder))
        images = len(list((Path(folder) / "bare").glob("*.jpg")))
    write({"images": images, "results": found, "machine": describe()}, options.out)


def write(record: dict[str, Any], out: Path) -> None:
    """Judge the results, write the file and print the totals."""
    marks = {name: right(texts) for name, texts in record["results"].items()}
    total = {name: sum(map(sum, queries.values())) for name, queries in marks.items()}
    found = {"images": record["images"], "right_of_50": total, "right": marks}
    found |= {"results": record["results"], "machine": record["machine"]}
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, number in total.items():
        print(f"{name}: {number} of {len(QUERIES) * TOP} results are right")


if __name__ == "__main__":
    main()
