"""Generators of malicious inputs; malicious.py describes each."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.fuzz import valid

HARMED = "HARMED"  # created by executed code
SECRET = "secret.png"  # an image outside the input, which must not be read
SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="9" height="9">{}</svg>'
PICTURE = '<image xlink:href="{}" width="9" height="9"/>'


def changed(make: valid.Make, file: str, change: Callable[[Any], Any]) -> valid.Make:
    """Change the JSON `file` of a valid input and remove its seal."""

    def made(folder: Path) -> Path:
        path = make(folder)
        value = json.loads((path / file).read_text(encoding="utf-8"))
        value.pop("sha256", None)
        change(value)
        (path / file).write_text(json.dumps(value), encoding="utf-8")
        return path

    return made


def file(name: str, content: bytes | Callable[[], bytes]) -> valid.Make:
    def made(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content())
        return folder / name

    return made


def svg(inner: str, head: str = "") -> valid.Make:
    return file("a.svg", (head + SVG.format(inner)).encode())


def secret_svg(folder: Path) -> Path:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / SECRET)
    (folder / "a.svg").write_text(SVG.format(PICTURE.format(folder / SECRET)), encoding="utf-8")
    return folder / "a.svg"


def hidden_svg(folder: Path) -> Path:
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / SECRET)
    head = f'<!DOCTYPE svg [<!ENTITY e "{folder / SECRET}">]>'
    (folder / "a.svg").write_text(head + SVG.format("<image href\n=\n'#&e;' xlink:href=\"&e;\"/>"), encoding="utf-8")
    return folder / "a.svg"


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def pickled_npy(folder: Path) -> Path:
    np.save(folder / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return folder / "a.npy"


def pickled_npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", a=np.array([{"a": 1}], dtype=object))
    return folder / "a.npz"


def zip_bomb(folder: Path) -> Path:
    rows = 25_000
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        file.write(npy_header((rows, 1000)))
        for _ in range(rows // 1000):
            file.write(bytes(4_000_000))
    return folder / "a.npz"


def zip_claim(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy_header((10**12, 10)) + bytes(100))
    return folder / "a.npz"


def safetensors(header: dict[str, Any] | None, length: int | None = None) -> valid.Make:
    text = json.dumps(header).encode() if header is not None else b"{}"
    return file("a.safetensors", struct.pack("<Q", length or len(text)) + text + bytes(64))


def tensor(shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}


def tar(*members: tuple[str, dict[str, Any], bytes]) -> valid.Make:
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


def sparse_tar(folder: Path) -> Path:
    """Write a tar member with a size of one terabyte in its header and no data."""
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 40
    (folder / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    return folder / "a.tar"


def many_rows(folder: Path) -> Path:
    """Write three million rows of one word, in 80 kilobytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    word = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3_000_000, dtype=np.int32)), ["x" * 100])
    pq.write_table(pa.table({"image": word, "caption": word}), folder / "a.parquet", compression="zstd")
    return folder / "a.parquet"


def long_text(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": ["a.png"], "caption": ["x" * 100_000_000]})
    pq.write_table(table, folder / "a.parquet", compression="zstd", use_dictionary=False)
    return folder / "a.parquet"


def repeated_text(column: Any, **options: Any) -> valid.Make:
    """Write a table of one column of texts, `caption`, whose file is small since they repeat. column: makes it."""

    def made(folder: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = column(pa)
        table = pa.table({"image": ["a.png"] * len(found), "caption": found})
        pq.write_table(table, folder / "a.parquet", compression="zstd", store_schema=False, **options)
        return folder / "a.parquet"

    return made


def dictionary(count: int, rows: int, length: int) -> Callable[[Any], Any]:
    """Return a column of `rows` texts out of `count` texts of `length` characters."""
    texts = [chr(97 + n % 26) * (length + n) for n in range(count)]
    return lambda pa: pa.DictionaryArray.from_arrays(pa.array(np.arange(rows, dtype=np.int32) % count), texts)


def prefixes(pa: Any) -> Any:
    return pa.array(["x" * 100_000 + str(n) for n in range(3000)])


def lists(pa: Any) -> Any:
    return pa.array([["x" * 100_000] * 3000] * 3)


def many_numbers(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.array([[1.0] * 1_000_000] * 50, pa.list_(pa.float32()))
    pq.write_table(pa.table({"v": rows}), folder / "a.parquet", compression="zstd")
    return folder / "a.parquet"


def lying_footer(folder: Path) -> Path:
    """Write a table whose footer claims a tenth of the bytes of its pages."""
    path = long_text(folder)
    content = bytearray(path.read_bytes())
    at = int.from_bytes(content[-8:-4], "little") + 8
    footer = bytes(content[-at:]).replace(varint(100_000_000), varint(10_000_000))
    for size in range(100_000_000, 100_000_200):
        footer = footer.replace(varint(2 * size), varint(2 * (size - 90_000_000)))
    path.write_bytes(bytes(content[:-at]) + footer)
    return path


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def float_tiff(folder: Path) -> Path:
    """Write an image of 49 million floating numbers in a few hundred kilobytes."""
    Image.new("F", (7000, 7000)).save(folder / "a.tif", compression="tiff_adobe_deflate")
    return folder / "a.tif"


def wide_footer(folder: Path) -> Path:
    path = valid.table(".parquet")(folder)
    content = path.read_bytes()
    path.write_bytes(content[:-8] + struct.pack("<I", 0x7FFFFFFF) + b"PAR1")
    return path


def code_model(folder: Path) -> Path:
    path = valid.encoder("bert")(folder)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config"}, "model_type": "evil"}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "evil.py").write_text(proof(folder), encoding="utf-8")
    return path


def proof(folder: Path) -> str:
    """Return Python code that creates a file when run."""
    return f"open({str(folder / HARMED)!r}, 'w').write('x')\n"


def part(folder: Path, config: dict[str, Any], weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / weights).write_bytes(struct.pack("<Q", 2) + b"{}")
    return folder


def pickled_model(folder: Path) -> Path:
    return part(folder / "bert", {"model_type": "bert"}, "pytorch_model.bin")


def foreign_module(folder: Path) -> Path:
    path = part(folder / "bert", {"model_type": "bert"})
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]
    (path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (path / "evil.py").write_text(proof(folder), encoding="utf-8")
    return path


def decoder_with(entry: list[str], code: bool = False) -> valid.Make:
    def made(folder: Path) -> Path:
        path = folder / "decoder"
        part(path / "unet", {"addition_embed_type": "image", "encoder_hid_dim": 4})
        index = {"_class_name": "KandinskyV22Pipeline", "unet": entry}
        (path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
        if code:
            (path / "unet" / f"{entry[0]}.py").write_text(proof(folder), encoding="utf-8")
        return path

    return made


def pickled_lora(path: Path) -> Any:
    from csaligner.adapters.lora import load_lora

    tower: Any = torch.nn.Identity()
    tower.backbone = torch.nn.Identity()
    return load_lora(path, "text", tower)


def lora_folder(folder: Path) -> Path:
    path = valid.aligner(folder)
    (path / "text_lora").mkdir()
    (path / "text_lora" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (path / "text_lora" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    return path


def aliases(folder: Path) -> Path:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (folder / "a.yaml").write_text("\n".join(lines), encoding="utf-8")
    return folder / "a.yaml"


def climbing(name: str) -> valid.Make:
    return changed(valid.store, "csaligner.json", lambda value: value["shards"][0]["files"].update({name: ""}))


def pipe(folder: Path) -> Path:
    import os

    path = valid.store(folder)
    (path / "img_emb" / "img_emb_0.npy").unlink()
    os.mkfifo(path / "img_emb" / "img_emb_0.npy")
    return path


def device(folder: Path) -> Path:
    (folder / "a.png").symlink_to("/dev/zero")
    return folder / "a.png"


def huge_aligner(value: dict[str, Any]) -> None:
    value.update(dim_image=100_000, dim=100_000)
