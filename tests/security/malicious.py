"""Inputs made to harm: what each tries, how it is made, how it is read. docs/trust.md prints this list."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz import targets, valid

HARMED = "HARMED"  # left behind by code that was run
SECRET = "secret.png"  # a picture beside the input that it must not reach
SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9" height="9">{}</svg>'
PICTURE = '<image xlink:href="{}" width="9" height="9"/>'


@dataclass(frozen=True)
class Case:
    """kind: what is given; tries: what it is up to; answer: a piece of the line that refuses it, None where it is read
    without harm (`harmless` says why). make: writes it below an empty folder; read: as in fuzzing."""

    kind: str
    tries: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    answer: str | None
    harmless: str = ""
    heavy: bool = False


def _changed(make: valid.Make, file: str, change: Callable[[Any], Any]) -> valid.Make:
    """A valid input whose JSON `file` was changed, without its seal."""

    def made(folder: Path) -> Path:
        path = make(folder)
        value = json.loads((path / file).read_text(encoding="utf-8"))
        value.pop("sha256", None)
        change(value)
        (path / file).write_text(json.dumps(value), encoding="utf-8")
        return path

    return made


def _file(name: str, content: bytes | Callable[[], bytes]) -> valid.Make:
    def made(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())
        return folder / name

    return made


def _svg(inner: str, head: str = "") -> valid.Make:
    return _file("a.svg", (head + SVG.format(inner)).encode())


def secret_svg(folder: Path) -> Path:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / SECRET)
    (folder / "a.svg").write_text(SVG.format(PICTURE.format(folder / SECRET)), encoding="utf-8")
    return folder / "a.svg"


def hidden_svg(folder: Path) -> Path:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / SECRET)
    head = f'<!DOCTYPE svg [<!ENTITY e "{folder / SECRET}">]>'
    (folder / "a.svg").write_text(head + SVG.format("<image href\n=\n'#&e;' xlink:href=\"&e;\"/>"), encoding="utf-8")
    return folder / "a.svg"


def _png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _pickled_npy(folder: Path) -> Path:
    np.save(folder / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return folder / "a.npy"


def _pickled_npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", a=np.array([{"a": 1}], dtype=object))
    return folder / "a.npz"


def _zip_bomb(folder: Path) -> Path:
    rows = 25_000
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        file.write(_npy_header((rows, 1000)))
        for _ in range(rows // 1000):
            file.write(bytes(4_000_000))
    return folder / "a.npz"


def _zip_claim(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("a.npy", _npy_header((10**12, 10)) + bytes(100))
    return folder / "a.npz"


def _safetensors(header: dict[str, Any] | None, length: int | None = None) -> valid.Make:
    text = json.dumps(header).encode() if header is not None else b"{}"
    return _file("a.safetensors", struct.pack("<Q", length or len(text)) + text + bytes(64))


def _tensor(shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}


def _tar(*members: tuple[str, dict[str, Any], bytes]) -> valid.Make:
    def made(folder: Path) -> Path:
        with tarfile.open(folder / "a.tar", "w", format=tarfile.GNU_FORMAT) as file:
            for name, fields, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                for key, value in fields.items():
                    setattr(info, key, value)
                file.addfile(info, io.BytesIO(content) if content else None)
        return folder / "a.tar"

    return made


def _sparse_tar(folder: Path) -> Path:
    """A member that claims a terabyte and has none of it."""
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 40
    (folder / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return folder / "a.tar"


def _many_rows(folder: Path) -> Path:
    """Three million rows of one word, in 80 kilobytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    word = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3_000_000, dtype=np.int32)), ["x" * 100])
    pq.write_table(pa.table({"image": word, "caption": word}), folder / "a.parquet", compression="zstd")
    return folder / "a.parquet"


def _long_text(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": ["a.png"], "caption": ["x" * 100_000_000]})
    pq.write_table(table, folder / "a.parquet", compression="zstd", use_dictionary=False)
    return folder / "a.parquet"


def _wide_footer(folder: Path) -> Path:
    path = valid.table(".parquet")(folder)
    content = path.read_bytes()
    path.write_bytes(content[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")
    return path


def _code_model(folder: Path) -> Path:
    path = valid.encoder("bert")(folder)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config"}, "model_type": "evil"}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "evil.py").write_text(_proof(folder), encoding="utf-8")
    return path


def _proof(folder: Path) -> str:
    """Python that leaves a trace when it is run."""
    return f"open({str(folder / HARMED)!r}, 'w').write('x')\n"


def _part(folder: Path, config: dict[str, Any], weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / weights).write_bytes(struct.pack("<Q", 2) + b"{}")
    return folder


def _pickled_model(folder: Path) -> Path:
    return _part(folder / "bert", {"model_type": "bert"}, "pytorch_model.bin")


def _foreign_module(folder: Path) -> Path:
    path = _part(folder / "bert", {"model_type": "bert"})
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]
    (path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (path / "evil.py").write_text(_proof(folder), encoding="utf-8")
    return path


def _decoder_with(entry: list[str], code: bool = False) -> valid.Make:
    def made(folder: Path) -> Path:
        path = folder / "decoder"
        _part(path / "unet", {"addition_embed_type": "image", "encoder_hid_dim": 4})
        index = {"_class_name": "KandinskyV22Pipeline", "unet": entry}
        (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
        if code:
            (path / "unet" / f"{entry[0]}.py").write_text(_proof(folder), encoding="utf-8")
        return path

    return made


def _pickled_lora(path: Path) -> Any:
    from csaligner.adapters.lora import _read

    return _read(None, path)  # type: ignore[arg-type]  # it is refused before the model is asked


def _lora_folder(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    return folder


def _aliases(folder: Path) -> Path:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (folder / "a.yaml").write_text("\n".join(lines), encoding="utf-8")
    return folder / "a.yaml"


def _climbing(name: str) -> valid.Make:
    return _changed(valid.store, "csaligner.json", lambda value: value["shards"][0]["files"].update({name: ""}))


def _pipe(folder: Path) -> Path:
    import os

    path = valid.store(folder)
    (path / "img_emb" / "img_emb_0.npy").unlink()
    os.mkfifo(path / "img_emb" / "img_emb_0.npy")
    return path


def _device(folder: Path) -> Path:
    (folder / "a.png").symlink_to("/dev/zero")
    return folder / "a.png"


def _huge_aligner(value: dict[str, Any]) -> None:
    value.update(dim_image=100_000, dim=100_000)


STORE, FEATURES, PICTURE_FILE = targets._store, targets._features, targets._picture
CONFIG, ALIGNER, ENCODER, DECODER = targets._config, targets._aligner, targets._encoder, targets._decoder
TAR, KARPATHY, PARQUET = (targets.TARGETS[name].read for name in ("webdataset", "karpathy", "parquet table"))
ENTITIES = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
LONG = "<!DOCTYPE svg [<!ENTITY a '" + "x" * 9000 + "'>]>"
INNER = base64.b64encode(SVG.format("<g>" * 9000 + "</g>" * 9000).encode()).decode()
BOMB = base64.b64encode(_png_bomb(20_000, 20_000)).decode()

CASES: tuple[Case, ...] = (
    Case("store", "names a file above it", _climbing("img_emb/../../x.npy"), STORE, "outside of the store"),
    Case("store", "names a file by its full path", _climbing("/etc/passwd"), STORE, "outside of the store"),
    Case("store", "has a pipe as a shard, which would never end", _pipe, STORE, "no such file"),
    Case(
        "store",
        "claims 10^18 rows",
        _changed(valid.store, "csaligner.json", lambda v: v["shards"][0].update(rows=10**18)),
        STORE,
        "its manifest says",
    ),
    Case(
        "store",
        "says that its rows are Python objects",
        _changed(valid.store, "csaligner.json", lambda v: v.update(dtype="object")),
        STORE,
        "wanted float32 or float16",
    ),
    Case("features", ".npy with pickled objects", _pickled_npy, FEATURES, "does not read as .npy"),
    Case("features", ".npz with pickled objects", _pickled_npz, FEATURES, "does not read as .npz"),
    Case("features", ".npz that unpacks to 100 MB", _zip_bomb, FEATURES, "claim to hold"),
    Case("features", ".npz whose header claims 40 TB", _zip_claim, FEATURES, "cut short"),
    Case(
        "features",
        ".npy whose header claims 40 TB",
        _file("a.npy", _npy_header((10**12, 10))),
        FEATURES,
        "cut short",
    ),
    Case(
        "features",
        ".safetensors whose header claims 2^60 bytes",
        _safetensors(None, 1 << 60),
        FEATURES,
        "does not read as .safetensors",
    ),
    Case(
        "features",
        ".safetensors with a tensor of 4 TB",
        _safetensors({"a": _tensor([10**6, 10**6], 0, 4 * 10**12)}),
        FEATURES,
        "does not read as .safetensors",
    ),
    Case(
        "features",
        ".safetensors with tensors over each other",
        _safetensors({"a": _tensor([2, 8], 0, 64), "b": _tensor([2, 8], 0, 64)}),
        FEATURES,
        "does not read as .safetensors",
    ),
    Case("table", ".parquet with 3 million rows in 80 kB", _many_rows, PARQUET, "claim"),
    Case("table", ".parquet with a text of 100 MB", _long_text, PARQUET, "claim"),
    Case("table", ".parquet with a footer of 2 GB", _wide_footer, PARQUET, "parquet"),
    Case(
        "tar",
        "a member with a full path",
        _tar(("/etc/a.png", {}, valid.picture())),
        TAR,
        None,
        "the member is unusable; nothing is ever unpacked",
    ),
    Case(
        "tar",
        "a member that climbs",
        _tar(("../../a.png", {}, valid.picture()), ("../../a.txt", {}, b"x")),
        TAR,
        None,
        "the member is unusable; nothing is ever unpacked",
    ),
    Case(
        "tar",
        "a link to another file",
        _tar(("a.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b""), ("a.txt", {}, b"x")),
        TAR,
        None,
        "the member is unusable; links are not followed",
    ),
    Case(
        "tar",
        "a device",
        _tar(("a.png", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}, b""), ("a.txt", {}, b"x")),
        TAR,
        None,
        "the member is unusable",
    ),
    Case("tar", "a member that claims a terabyte", _sparse_tar, TAR, None, "the member is unusable"),
    Case("SVG", "draws another file of the machine", secret_svg, PICTURE_FILE, None, "the reference is taken out"),
    Case("SVG", "the same, behind an entity", hidden_svg, PICTURE_FILE, None, "the reference is taken out"),
    Case(
        "SVG",
        "reads /etc/passwd through an external entity",
        _svg("<text>&e;</text>", '<!DOCTYPE svg [<!ENTITY e SYSTEM "file:///etc/passwd">]>'),
        PICTURE_FILE,
        "names another file",
    ),
    Case(
        "SVG",
        "entities of entities (a billion laughs)",
        _svg("<text>&a9;</text>", f'<!DOCTYPE svg [<!ENTITY a0 "ha">{ENTITIES}]>'),
        PICTURE_FILE,
        "holds more than text",
    ),
    Case("SVG", "one long entity 9,000 times", _svg("&a;" * 9000, LONG), PICTURE_FILE, "cannot be drawn"),
    Case("SVG", "9,000 elements in each other", _svg("<g>" * 9000 + "</g>" * 9000), PICTURE_FILE, "in each other"),
    Case(
        "SVG",
        "the same in a drawing inside",
        _svg(PICTURE.format(f"data:image/svg+xml;base64,{INNER}")),
        PICTURE_FILE,
        None,
        "drawings in drawings are taken out",
    ),
    Case(
        "SVG",
        "a million characters of text",
        _svg(f"<text>{'x' * 10**6}</text>"),
        PICTURE_FILE,
        "characters of text",
    ),
    Case(
        "SVG",
        "a picture of 400 million pixels inside",
        _svg(PICTURE.format(f"data:image/png;base64,{BOMB}")),
        PICTURE_FILE,
        "cannot be drawn",
    ),
    Case("SVGZ", "unpacks to 100 MB", _file("a.svgz", lambda: gzip.compress(bytes(10**8))), PICTURE_FILE, "bytes"),
    Case(
        "picture",
        "a PNG of 60,000 x 60,000 pixels",
        _file("a.png", _png_bomb(60_000, 60_000)),
        PICTURE_FILE,
        "pixels",
    ),
    Case("picture", "a PNG of 8,000 x 8,000 pixels", _file("a.png", _png_bomb(8_000, 8_000)), PICTURE_FILE, "pixels"),
    Case("picture", "a link to /dev/zero", _device, PICTURE_FILE, "no such file"),
    Case(
        "picture",
        "PostScript named .png, which Pillow would hand to another program",
        _file("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"),
        PICTURE_FILE,
        "cannot be read as a picture",
    ),
    Case("config", "YAML aliases that multiply to 10^9 entries", _aliases, CONFIG, "write the values out"),
    Case(
        "config",
        "YAML with a Python tag",
        _file("a.yaml", b"lr: !!python/object/apply:os.system ['true']"),
        CONFIG,
        "not YAML",
    ),
    Case("config", "YAML nested 100,000 deep", _file("a.yaml", b"[" * 100_000), CONFIG, "not YAML"),
    Case(
        "JSON",
        "nested 100,000 deep",
        _file("dataset_coco.json", b'{"images":' + b"[" * 100_000),
        KARPATHY,
        "nested too deeply",
    ),
    Case(
        "JSON",
        "a number of 100,000 digits",
        _file("dataset_coco.json", b'{"images":[' + b"9" * 100_000 + b"]}"),
        KARPATHY,
        "is not JSON",
    ),
    Case(
        "checkpoint",
        "claims an adapter of 10^10 numbers",
        _changed(valid.aligner, "config.json", _huge_aligner),
        ALIGNER,
        "asks for",
    ),
    Case(
        "checkpoint",
        "LoRA whose weights are pickled",
        _lora_folder,
        _pickled_lora,
        "pickled",
    ),
    Case(
        "text model",
        "brings its own code (auto_map)",
        _code_model,
        ENCODER,
        "does not load|holds no",
        heavy=True,
    ),
    Case(
        "text model",
        "pickled weights (pytorch_model.bin)",
        _pickled_model,
        ENCODER,
        "safetensors",
    ),
    Case(
        "text model",
        "a module of sentence-transformers that is not its own",
        _foreign_module,
        ENCODER,
        "is not run",
    ),
    Case(
        "decoder",
        "a part of another library, which would be imported",
        _decoder_with(["os", "system"]),
        DECODER,
        "wanted a class of",
    ),
    Case(
        "decoder",
        "a part with its own code",
        _decoder_with(["evil", "Evil"], code=True),
        DECODER,
        "is not run",
    ),
)
