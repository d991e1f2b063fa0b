"""Image loading: formats, colour modes, size limits and errors."""

from __future__ import annotations

import struct
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin, features

from csaligner.datasets.images import load as images
from csaligner.datasets.images.load import ImageError, load_image

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}">{body}</svg>'
RED = '<rect width="100%" height="100%" fill="#f00"/>'


def pixels(path: Path, size: int = 224) -> npt.NDArray[np.uint8]:
    image = load_image(path, size)
    assert image.mode == "RGB"
    return np.asarray(image)


def write_svg(path: Path, w: str = "20", h: str = "20", body: str = RED) -> Path:
    path.write_text(SVG.format(w=w, h=h, body=body), encoding="utf-8")
    return path


def test_svg_is_drawn_with_its_longer_side_at_size(tmp_path: Path) -> None:
    found = pixels(write_svg(tmp_path / "a.svg", "40", "10"), 64)
    assert found.shape == (16, 64, 3)
    assert (found == [255, 0, 0]).all()


def test_svg_is_white_where_nothing_is_drawn(tmp_path: Path) -> None:
    found = pixels(write_svg(tmp_path / "a.svg", body='<rect width="10" height="20" fill="#00f"/>'), 20)
    assert (found[:, :10] == [0, 0, 255]).all()
    assert (found[:, 10:] == 255).all()


@pytest.mark.parametrize("unit", ["pt", "mm", "in"])
def test_svg_sizes_in_print_units_are_drawn(tmp_path: Path, unit: str) -> None:
    assert pixels(write_svg(tmp_path / "a.svg", f"30{unit}", f"30{unit}"), 32).shape == (32, 32, 3)


def test_svg_of_extreme_shape_stays_small(tmp_path: Path) -> None:
    assert max(pixels(write_svg(tmp_path / "a.svg", "1", "1000000"), 64).shape) == 64


@pytest.mark.parametrize("text", ["", "<svg", "no picture at all", SVG.format(w="-1", h="0", body="")])
def test_broken_svg(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.svg"
    path.write_text(text)
    with pytest.raises(ImageError, match=r"broken\.svg"):
        load_image(path)


def test_transparency_is_blended_with_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    rgba = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(rgba).save(path)
    assert pixels(path).tolist() == [[[255, 255, 255], [255, 0, 0], [204, 204, 204]]]


def test_palette_and_grey_with_transparency(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    assert pixels(tmp_path / "p.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]
    Image.fromarray(np.array([[[7, 255], [7, 0]]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png").tolist() == [[[7, 7, 7], [255, 255, 255]]]


@pytest.mark.parametrize(("mode", "colour", "wanted"), [("L", 77, 77), ("1", 1, 255), ("CMYK", (0, 0, 0, 0), 255)])
def test_other_colour_modes(tmp_path: Path, mode: str, colour: int, wanted: int) -> None:
    path = tmp_path / "a.tif"
    Image.new(mode, (3, 2), colour).save(path)
    assert (pixels(path) == wanted).all()
    assert pixels(path).shape == (2, 3, 3)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(path)
    assert pixels(path)[0, :, 0].tolist() == [0, 100, 255]


def test_float_grey_is_stretched(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)).save(path)
    assert pixels(path)[0, :, 0].tolist() == [0, 128, 255]


def test_exif_orientation(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    Image.fromarray(np.array([[[1, 1, 1]], [[2, 2, 2]]], dtype=np.uint8)).save(path, exif=exif)
    assert pixels(path)[:, :, 0].tolist() == [[2, 1]]


def test_first_frame_of_a_moving_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert (pixels(path) == [255, 0, 0]).all()


def test_a_large_jpeg_is_decoded_small_but_never_below_twice_the_size(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (1600, 1000), "green").save(path)
    assert load_image(path, 100).size == (400, 250)
    assert load_image(path, 500).size == (1600, 1000)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif"])
def test_a_truncated_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=rf"cut\{suffix}"):
        load_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"text\.png") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match="file"):
            load_image(path)


def test_the_pixel_limit_holds_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.png"
    Image.new("L", (20, 10)).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 199)
    with pytest.raises(ImageError, match=r"big\.png.*20 x 10.*199"):
        load_image(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 200)
    assert load_image(path).size == (20, 10)


def test_a_bomb_is_refused_without_being_decoded(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path = tmp_path / "bomb.png"
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(ImageError, match=r"bomb\.png"):
        load_image(path)


def test_text_profiles_and_exif_never_cost_the_pixels(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    blue = Image.new("RGB", (64, 64), "blue")
    blue.save(tmp_path / "text.png", pnginfo=text)
    blue.save(tmp_path / "exif.png", exif=b"junkjunk")
    blue.save(tmp_path / "exif.jpg", exif=b"Exif\0\0junk" * 9)
    blue.save(tmp_path / "profile.png", icc_profile=b"no profile")
    blue.save(tmp_path / "profile.jpg", icc_profile=b"no profile" * 9000)
    whole = (tmp_path / "exif.png").read_bytes()
    at = whole.index(b"eXIf")
    (tmp_path / "crc.png").write_bytes(whole[: at + 6] + b"?" + whole[at + 7 :])
    for name in ("text.png", "exif.png", "exif.jpg", "profile.png", "profile.jpg", "crc.png"):
        assert pixels(tmp_path / name)[9, 9].tolist() in ([0, 0, 255], [0, 0, 254]), name


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (10, 1023), (12, 4095), (15, 32767), (16, 65535)])
def test_grey_of_every_depth_fills_the_range(tmp_path: Path, bits: int, top: int) -> None:
    values = np.linspace(0, top, 4096).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    found = pixels(tmp_path / "x.png")[:, :, 0]
    assert found.max() == 255
    assert np.abs(found - values / (2**bits - 1) * 255).max() <= 1


def test_white_on_transparent_is_seen(tmp_path: Path) -> None:
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[2:6, 2:6] = 255
    Image.fromarray(rgba).save(tmp_path / "white.png")
    assert (pixels(tmp_path / "white.png") == rgba[..., :3]).all()
    rgba[3, 3] = [0, 0, 0, 255]  # dark pixels are visible on white
    Image.fromarray(rgba).save(tmp_path / "both.png")
    assert pixels(tmp_path / "both.png")[0, 0].tolist() == [255, 255, 255]
    rgba[..., :] = [0, 0, 0, 9]  # a faint shadow
    Image.fromarray(rgba).save(tmp_path / "faint.png")
    assert pixels(tmp_path / "faint.png")[0, 0].tolist() == [246, 246, 246]
    body = '<circle cx="10" cy="10" r="5" fill="#fff"/>'
    assert pixels(write_svg(tmp_path / "w.svg", body=body), 20)[10, 10].tolist() == [255, 255, 255]
    assert pixels(tmp_path / "w.svg", 20)[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif"])
def test_other_names_of_images(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a", "AVIF" if suffix == ".avif" else "JPEG")
    (tmp_path / "a").rename(tmp_path / f"a{suffix}")
    assert suffix in images.SUFFIXES
    assert pixels(tmp_path / f"a{suffix}")[4, 4, 2] > 250


def deep_png(values: npt.NDArray[np.uint16]) -> bytes:
    """Return a PNG of 16 bits per channel, which Pillow does not write."""
    kinds, rows = {3: 2, 4: 6}, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], len(values), 16, kinds[values.shape[2]], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep_tiff(values: npt.NDArray[np.uint16], order: str, packed: bool) -> bytes:
    """Return a TIFF of 16 bits per channel, RGB, in the byte order "<" or ">"."""
    content = values.astype(f"{order}u2").tobytes()
    content = zlib.compress(content) if packed else content
    tags = [(256, values.shape[1]), (257, len(values)), (258, 122), (259, 8 if packed else 1), (262, 2), (273, 128)]
    tags += [(277, 3), (278, len(values)), (279, len(content))]
    table = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags if tag != 258)
    bits = struct.pack(f"{order}HHII", 258, 3, 3, 122)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    start = head + table[:24] + bits + table[24:] + bytes(4)
    return start + struct.pack(f"{order}3H", 16, 16, 16) + content


@pytest.mark.parametrize(("top", "factor"), [(1023, 255 / 1023), (4095, 255 / 4095), (65535, 1 / 256)])
def test_colours_of_every_depth_fill_the_range(tmp_path: Path, top: int, factor: float) -> None:
    values = np.linspace(0, top, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint16)
    opaque = np.concatenate([values, np.full((16, 16, 1), 65535, np.uint16)], axis=2)
    files = {"a.png": deep_png(values), "b.png": deep_png(opaque)}
    files |= {f"{i}.tif": deep_tiff(values, order, packed) for i, (order, packed) in enumerate(product("<>", (0, 1)))}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert np.abs(pixels(tmp_path / name) - values * factor).max() < 1, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((20, 30, 3), np.uint8)
    upright[:10, :10] = (255, 0, 0)  # red at the top left
    turns = Image.Transpose
    undo = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE}
    undo |= {6: turns.ROTATE_90, 7: turns.TRANSVERSE, 8: turns.ROTATE_270}
    image = Image.fromarray(upright)
    image = image.transpose(undo[orientation]) if orientation in undo else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "jpg", "webp", "tif"):
        image.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
        found = pixels(tmp_path / f"a.{suffix}").astype(int)
        assert found.shape == (20, 30, 3), suffix
        assert found[2, 2, 0] > 200, suffix
        assert found[15, 25, 0] < 50, suffix


def test_kinds_of_files_that_cameras_and_tools_write(tmp_path: Path) -> None:
    red = Image.new("RGB", (32, 24), (200, 0, 0))
    other = Image.new("RGB", (32, 24), (0, 0, 200))
    red.copy().save(tmp_path / "mpo.jpg", "MPO", save_all=True, append_images=[other.copy()])
    red.copy().save(tmp_path / "apng.png", save_all=True, append_images=[other.copy()])
    red.copy().save(tmp_path / "moving.webp", save_all=True, append_images=[other.copy()], lossless=True)
    red.copy().save(tmp_path / "pages.tif", save_all=True, append_images=[other.copy()])
    red.copy().save(tmp_path / "really-png.jpg", "PNG")
    red.copy().save(tmp_path / "broken-profile.png", icc_profile=b"junk" * 40)
    red.convert("CMYK").save(tmp_path / "cmyk.tif")
    for path in sorted(tmp_path.iterdir()):
        found = pixels(path).reshape(-1, 3).mean(axis=0)
        assert found[0] > 120, path.name
        assert found[2] < 60, path.name


def test_extreme_shapes(tmp_path: Path) -> None:
    for size in ((65500, 1), (1, 65500), (1, 1)):
        Image.new("RGB", size, "red").save(tmp_path / "a.png")
        assert pixels(tmp_path / "a.png").shape == (*size[::-1], 3)
