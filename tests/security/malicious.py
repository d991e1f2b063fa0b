"""Malicious inputs: description, generator and reader of each; source of the list in docs/trust.md."""

from __future__ import annotations

import base64
import gzip
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import targets, valid

from .drawings import CRASH, ENDLESS
from .makers import (
    PICTURE,
    SVG,
    aliases,
    changed,
    climbing,
    code_model,
    decoder_with,
    device,
    dictionary,
    file,
    float_tiff,
    foreign_module,
    hidden_svg,
    huge_aligner,
    lists,
    long_text,
    lora_folder,
    lying_footer,
    many_numbers,
    many_rows,
    npy_header,
    pickled_lora,
    pickled_model,
    pickled_npy,
    pickled_npz,
    pipe,
    png_bomb,
    prefixes,
    repeated_text,
    safetensors,
    secret_svg,
    sparse_tar,
    svg,
    tar,
    tensor,
    wide_footer,
    zip_bomb,
    zip_claim,
)


@dataclass(frozen=True)
class Case:
    """kind: type of input; tries: the attack; answer: part of the error message, None if the input is read without harm
    (reason in `harmless`); make: writes the input to an empty folder; read: as in fuzzing."""

    kind: str
    tries: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    answer: str | None
    harmless: str = ""
    heavy: bool = False


STORE, FEATURES, PICTURE_FILE = (targets.TARGETS[name].read for name in ("store", "npy", "png"))
FEATURES_PARQUET = targets.TARGETS["parquet"].read
CONFIG, ALIGNER = (targets.TARGETS[name].read for name in ("config", "aligner"))
ENCODER, DECODER = (targets.TARGETS[name].read for name in ("text encoder", "decoder"))
TAR, KARPATHY, PARQUET = (targets.TARGETS[name].read for name in ("webdataset", "karpathy", "parquet table"))
ENTITIES = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
LONG = "<!DOCTYPE svg [<!ENTITY a '" + "x" * 9000 + "'>]>"
INNER = base64.b64encode(SVG.format("<g>" * 9000 + "</g>" * 9000).encode()).decode()
BOMB = base64.b64encode(png_bomb(20_000, 20_000)).decode()

CASES: tuple[Case, ...] = (
    Case("store", "names a file above it", climbing("img_emb/../../x.npy"), STORE, "outside the store"),
    Case("store", "names a file by its full path", climbing("/etc/passwd"), STORE, "outside the store"),
    Case("store", "has a pipe as a shard, which would never end", pipe, STORE, "img_emb_0"),
    Case(
        "store",
        "claims 10^18 rows",
        changed(valid.store, "csaligner.json", lambda v: v["shards"][0].update(rows=10**18)),
        STORE,
        "wanted \\(1000000000000000000",
    ),
    Case(
        "store",
        "says that its rows are Python objects",
        changed(valid.store, "csaligner.json", lambda v: v.update(dtype="object")),
        STORE,
        "float32",
    ),
    Case("features", ".npy with pickled objects", pickled_npy, FEATURES, r"\.npy"),
    Case("features", ".npz with pickled objects", pickled_npz, FEATURES, r"\.npz"),
    Case("features", ".npz that unpacks to 100 MB", zip_bomb, FEATURES, "claim to hold"),
    Case("features", ".npz whose header claims 40 TB", zip_claim, FEATURES, "truncated"),
    Case(
        "features",
        ".npy whose header claims 40 TB",
        file("a.npy", npy_header((10**12, 10))),
        FEATURES,
        "truncated",
    ),
    Case(
        "features",
        ".safetensors whose header claims 2^60 bytes",
        safetensors(None, 1 << 60),
        FEATURES,
        r"\.safetensors",
    ),
    Case(
        "features",
        ".safetensors with a tensor of 4 TB",
        safetensors({"a": tensor([10**6, 10**6], 0, 4 * 10**12)}),
        FEATURES,
        r"\.safetensors",
    ),
    Case(
        "features",
        ".safetensors with tensors over each other",
        safetensors({"a": tensor([2, 8], 0, 64), "b": tensor([2, 8], 0, 64)}),
        FEATURES,
        r"\.safetensors",
    ),
    Case("table", ".parquet with 3 million rows in 80 kB", many_rows, PARQUET, "claim"),
    Case("table", ".parquet with a text of 100 MB", long_text, PARQUET, "claim"),
    Case(
        "table",
        ".parquet with 20,000 x one text of 2 MB",
        repeated_text(dictionary(1, 20_000, 2_000_000)),
        PARQUET,
        "claims",
    ),
    Case(
        "table",
        ".parquet with 20,000 rows of 100 texts of 1 MB",
        repeated_text(dictionary(100, 20_000, 1_000_000)),
        PARQUET,
        "claims",
    ),
    Case(
        "table",
        ".parquet with texts that share their start",
        repeated_text(prefixes, use_dictionary=False, column_encoding={"caption": "DELTA_BYTE_ARRAY"}),
        PARQUET,
        "claims",
    ),
    Case("table", ".parquet with lists of one long text", repeated_text(lists), PARQUET, "claims"),
    Case("table", ".parquet whose footer claims less than its pages", lying_footer, PARQUET, "claims"),
    Case("features", ".parquet with 50 million numbers in 1 kB", many_numbers, FEATURES_PARQUET, "claims"),
    Case("table", ".parquet with a footer of 2 GB", wide_footer, PARQUET, "parquet"),
    Case(
        "tar",
        "a member with a full path",
        tar(("/etc/a.png", {}, valid.picture())),
        TAR,
        None,
        "the member is unusable; nothing is ever unpacked",
    ),
    Case(
        "tar",
        "a member that climbs",
        tar(("../../a.png", {}, valid.picture()), ("../../a.txt", {}, b"x")),
        TAR,
        None,
        "the member is unusable; nothing is ever unpacked",
    ),
    Case(
        "tar",
        "a link to another file",
        tar(("a.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b""), ("a.txt", {}, b"x")),
        TAR,
        None,
        "the member is unusable; links are not followed",
    ),
    Case(
        "tar",
        "a device",
        tar(("a.png", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}, b""), ("a.txt", {}, b"x")),
        TAR,
        None,
        "the member is unusable",
    ),
    Case("tar", "a member that claims a terabyte", sparse_tar, TAR, None, "the member is unusable"),
    Case("SVG", "draws another file of the machine", secret_svg, PICTURE_FILE, None, "the reference is taken out"),
    Case("SVG", "the same, behind an entity", hidden_svg, PICTURE_FILE, None, "the reference is taken out"),
    Case(
        "SVG",
        "reads /etc/passwd through an external entity",
        svg("<text>&e;</text>", '<!DOCTYPE svg [<!ENTITY e SYSTEM "file:///etc/passwd">]>'),
        PICTURE_FILE,
        "refers to another file",
    ),
    Case(
        "SVG",
        "entities of entities (a billion laughs)",
        svg("<text>&a9;</text>", f'<!DOCTYPE svg [<!ENTITY a0 "ha">{ENTITIES}]>'),
        PICTURE_FILE,
        "more than text",
    ),
    Case("SVG", "one long entity 9,000 times", svg("&a;" * 9000, LONG), PICTURE_FILE, "drawn"),
    Case("SVG", "9,000 elements in each other", svg("<g>" * 9000 + "</g>" * 9000), PICTURE_FILE, "nested elements"),
    Case(
        "SVG",
        "the same in a drawing inside",
        svg(PICTURE.format(f"data:image/svg+xml;base64,{INNER}")),
        PICTURE_FILE,
        None,
        "drawings in drawings are taken out",
    ),
    Case(
        "SVG",
        "a million characters of text",
        svg(f"<text>{'x' * 10**6}</text>"),
        PICTURE_FILE,
        "characters of text",
    ),
    Case(
        "SVG",
        "a picture of 400 million pixels inside",
        svg(PICTURE.format(f"data:image/png;base64,{BOMB}")),
        PICTURE_FILE,
        "drawn",
    ),
    Case("SVG", "draws itself, which crashes the renderer", file("a.svg", CRASH.encode()), PICTURE_FILE, "renderer"),
    *(
        Case("SVG", f"without end: {name}", file("a.svg", text.encode()), PICTURE_FILE, "seconds|memory", heavy=True)
        for name, text in ENDLESS.items()
    ),
    Case("SVGZ", "unpacks to 100 MB", file("a.svgz", lambda: gzip.compress(bytes(10**8))), PICTURE_FILE, "bytes"),
    Case(
        "picture",
        "a PNG of 60,000 x 60,000 pixels",
        file("a.png", png_bomb(60_000, 60_000)),
        PICTURE_FILE,
        "pixels",
    ),
    Case("picture", "a PNG of 8,000 x 8,000 pixels", file("a.png", png_bomb(8_000, 8_000)), PICTURE_FILE, "pixels"),
    Case("picture", "a TIFF of 49 million floating numbers", float_tiff, PICTURE_FILE, None, "read in strips"),
    Case("picture", "a link to /dev/zero", device, PICTURE_FILE, r"a\.png"),
    Case(
        "picture",
        "PostScript named .png, which Pillow would hand to another program",
        file("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"),
        PICTURE_FILE,
        "cannot be read as an image",
    ),
    Case("config", "YAML aliases that multiply to 10^9 entries", aliases, CONFIG, "write the values out"),
    Case(
        "config",
        "YAML with a Python tag",
        file("a.yaml", b"lr: !!python/object/apply:os.system ['true']"),
        CONFIG,
        "YAML",
    ),
    Case("config", "YAML nested 100,000 deep", file("a.yaml", b"[" * 100_000), CONFIG, "YAML"),
    Case(
        "JSON",
        "nested 100,000 deep",
        file("dataset_coco.json", b'{"images":' + b"[" * 100_000),
        KARPATHY,
        "nested too deeply",
    ),
    Case(
        "JSON",
        "a number of 100,000 digits",
        file("dataset_coco.json", b'{"images":[' + b"9" * 100_000 + b"]}"),
        KARPATHY,
        "JSON",
    ),
    Case(
        "checkpoint",
        "claims an adapter of 10^10 numbers",
        changed(valid.aligner, "config.json", huge_aligner),
        ALIGNER,
        "parameters",
    ),
    Case(
        "checkpoint",
        "LoRA whose weights are pickled",
        lora_folder,
        pickled_lora,
        "pickled",
    ),
    Case(
        "text model",
        "brings its own code (auto_map)",
        code_model,
        ENCODER,
        "does not load|holds no",
        heavy=True,
    ),
    Case(
        "text model",
        "pickled weights (pytorch_model.bin)",
        pickled_model,
        ENCODER,
        "safetensors",
    ),
    Case(
        "text model",
        "a module of sentence-transformers that is not its own",
        foreign_module,
        ENCODER,
        "is not run",
    ),
    Case(
        "decoder",
        "a part of another library, which would be imported",
        decoder_with(["os", "system"]),
        DECODER,
        "wanted a class of",
    ),
    Case(
        "decoder",
        "a part with its own code",
        decoder_with(["evil", "Evil"], code=True),
        DECODER,
        "is not run",
    ),
)
