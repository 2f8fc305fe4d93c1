"""Decoding, resizing and encoding, against Pillow, with many kinds of unusual images."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from fastdps.shards.images import UnreadableItemError, decode, pack_image
from helpers.packed import encoded, noise, photo


def pillow(data: bytes) -> np.ndarray:
    """Pillow's RGB conversion after its EXIF transposition."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def cmyk_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo(40, 60)).convert("CMYK").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def ycck_jpeg() -> bytes:
    """Return the bytes with Adobe's marker that the first three channels are YCC."""
    data = cmyk_jpeg()
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    return data[: at + 11] + b"\x02" + data[at + 12 :]


def with_exif(form: str, orientation: int) -> bytes:
    image = Image.fromarray(photo(24, 40))
    exif = image.getexif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif)
    return buffer.getvalue()


def palette_png(transparency: int | bytes | None) -> bytes:
    image = Image.fromarray(photo(30, 30)).convert("P", palette=Image.Palette.ADAPTIVE, colors=17)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **({} if transparency is None else {"transparency": transparency}))
    return buffer.getvalue()


def deep_png(channels: int) -> bytes:
    """Return a PNG of 16 bits per channel, grey (1) or RGB (3), which Pillow does not write."""
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 11, channels)).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 11, 9, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def animation(form: str) -> bytes:
    frames = [Image.fromarray(photo(20, 30, seed=number)) for number in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=50)
    return buffer.getvalue()


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


ODD = {
    "JPEG": lambda: encoded(photo(40, 60), "JPEG"),
    "progressive JPEG": lambda: encoded(photo(40, 60), "JPEG", progressive=True),
    "grey JPEG": lambda: encoded(photo(40, 60), "JPEG", "L"),
    "CMYK JPEG": cmyk_jpeg,
    "YCCK JPEG": ycck_jpeg,
    "grey PNG": lambda: encoded(photo(40, 60), "PNG", "L"),
    "1-bit PNG": lambda: encoded(photo(40, 60), "PNG", "1"),
    "16-bit RGB PNG": lambda: deep_png(3),
    "palette PNG": lambda: palette_png(None),
    "palette PNG, one transparent": lambda: palette_png(3),
    "palette PNG, alpha": lambda: palette_png(bytes(range(0, 170, 10))),
    "alpha PNG": lambda: encoded(noise(9, 8, 4), "PNG"),
    "grey alpha PNG": lambda: encoded(photo(40, 60), "PNG", "LA"),
    "animated GIF": lambda: animation("GIF"),
    "animated WebP": lambda: animation("WEBP"),
    "animated PNG": lambda: animation("PNG"),
    "ICC": lambda: encoded(photo(40, 60), "JPEG", icc_profile=srgb_profile()),
    "broken ICC": lambda: encoded(photo(40, 60), "JPEG", icc_profile=b"no profile"),
    "broken ICC in PNG": lambda: encoded(photo(40, 60), "PNG", icc_profile=b"no profile"),
    "1 x 1": lambda: encoded(noise(1, 1, 3), "PNG"),
    **{f"JPEG, orientation {n}": (lambda n=n: with_exif("JPEG", n)) for n in range(1, 9)},
    **{f"PNG, orientation {n}": (lambda n=n: with_exif("PNG", n)) for n in (1, 3, 6)},
    **{f"TIFF, orientation {n}": (lambda n=n: with_exif("TIFF", n)) for n in range(1, 9)},
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_odd_images_have_the_pixels_that_pillow_gives_them(name):
    data = ODD[name]()
    expected = pillow(data)
    np.testing.assert_array_equal(decode(data), expected)
    extension, packed = pack_image(data, "png", None, "squash")
    assert extension == "png"
    np.testing.assert_array_equal(pillow(packed), expected)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_odd_images_resize_as_pillow_resizes_them(name):
    data = ODD[name]()
    expected = Image.fromarray(pillow(data)).resize((24, 24), Image.Resampling.BILINEAR)
    extension, packed = pack_image(data, "raw", 24, "squash")
    assert extension == "bin"
    found = np.frombuffer(packed, np.uint8).reshape(24, 24, 3)
    # Rotating after resizing swaps the order of Pillow's two passes, and so their rounding.
    np.testing.assert_allclose(found.astype(int), np.asarray(expected).astype(int), atol=1)


def test_odd_images_are_as_odd_as_they_say():
    assert Image.open(io.BytesIO(cmyk_jpeg())).mode == "CMYK"
    assert Image.open(io.BytesIO(ycck_jpeg())).info["adobe_transform"] == 2
    assert (pillow(ycck_jpeg()) != pillow(cmyk_jpeg())).any()
    assert Image.open(io.BytesIO(deep_png(1))).mode.startswith("I;16")
    assert pillow(with_exif("TIFF", 6)).shape == pillow(with_exif("JPEG", 6)).shape == (40, 24, 3)
    assert Image.open(io.BytesIO(animation("GIF"))).n_frames == 3


def bomb() -> bytes:
    """A small PNG of 20,000 x 20,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


def great() -> bytes:
    """Return a PNG of 100 million pixels, which Pillow decodes with a warning."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def damaged_png() -> bytes:
    data = bytearray(encoded(noise(40, 40, 3), "PNG"))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def postscript() -> bytes:
    """Return an EPS file, which Pillow passes to Ghostscript."""
    buffer = io.BytesIO()
    Image.fromarray(photo(24, 32)).save(buffer, "EPS")
    return buffer.getvalue()


BAD = {
    "PostScript": (postscript, "has no image format"),
    "zero bytes": (lambda: b"", "no image format"),
    "text": (lambda: b"<html>not found</html>", "no image format"),
    "truncated JPEG": (lambda: encoded(photo(300, 400), "JPEG")[:-3000], "truncated"),
    "truncated JPEG header": (lambda: encoded(photo(300, 400), "JPEG")[:100], "does not decode"),
    "truncated PNG": (lambda: encoded(noise(40, 40, 3), "PNG")[:-900], "truncated"),
    "truncated GIF": (lambda: animation("GIF")[:60], "does not decode"),
    "damaged PNG": (damaged_png, "does not decode"),
    "decompression bomb": (bomb, "decompression bomb"),
    "image beyond the limit": (great, "decompression bomb"),
    "16-bit grey PNG": (lambda: deep_png(1), "more than 8 bits"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("encoding", ["raw", "keep"])
def test_bad_images_are_rejected_with_a_reason(name, encoding):
    make, reason = BAD[name]
    with pytest.raises(UnreadableItemError, match=reason):
        pack_image(make(), encoding, None if encoding == "keep" else 24, "squash")


def test_no_image_runs_another_program(tmp_path, monkeypatch):
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # Pillow looks for it once
    with pytest.raises(UnreadableItemError):
        decode(postscript())
    assert not (tmp_path / "ran").exists()


def test_unreadable_metadata_is_no_reason_to_lose_the_pixels():
    data = encoded(photo(40, 60), "JPEG", exif=b"Exif\0\0no tiff at all")
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(375, 500), (1200, 700), (64, 64), (90, 1000)])
def test_scaled_decoding_is_close_to_full_decoding(shape, fit):
    data = encoded(photo(*shape), "JPEG", quality=95)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    if fit == "crop":
        side = min(whole.size)
        left, top = (whole.width - side) / 2, (whole.height - side) / 2
        expected = whole.resize((64, 64), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    else:
        expected = whole.resize((64, 64), Image.Resampling.BILINEAR)
    difference = abs(decode(data, 64, fit).astype(int) - np.asarray(expected).astype(int))
    assert difference.mean() < 0.6
    assert difference.max() <= 6


def test_scaled_decoding_of_real_images_moves_pixels_little(imagenet_sample):
    means = []
    for path in sorted(imagenet_sample.rglob("*.JPEG"))[::10]:
        data = path.read_bytes()
        expected = np.asarray(Image.fromarray(pillow(data)).resize((64, 64), Image.Resampling.BILINEAR))
        means.append(abs(decode(data, 64).astype(int) - expected.astype(int)).mean())
    assert len(means) == 70
    assert np.mean(means) < 1.5
    assert np.max(means) < 6


def test_crop_takes_the_centre():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert (decode(encoded(pixels, "PNG"), 10, "crop") == 200).all()
    assert not (decode(encoded(pixels, "PNG"), 10, "squash") == 200).all()


def test_keep_leaves_plain_jpegs_and_makes_the_rest_pngs():
    for name in ("JPEG", "progressive JPEG", "grey JPEG", "JPEG, orientation 1"):
        assert pack_image(ODD[name](), "keep", None, "squash") == ("jpg", ODD[name]())
    for name in ("CMYK JPEG", "YCCK JPEG", "JPEG, orientation 6", "animated GIF", "alpha PNG"):
        extension, data = pack_image(ODD[name](), "keep", None, "squash")
        assert extension == "png"
        np.testing.assert_array_equal(pillow(data), pillow(ODD[name]()))


@pytest.mark.parametrize(("encoding", "form"), [("jpeg", "JPEG"), ("png", "PNG")])
def test_encoded_images_carry_no_metadata(encoding, form):
    for name in ("ICC", "JPEG, orientation 6", "PNG, orientation 6"):
        image = Image.open(io.BytesIO(pack_image(ODD[name](), encoding, 24, "squash")[1]))
        assert (image.format, image.mode, image.size) == (form, "RGB", (24, 24))
        assert not image.getexif()
        assert "icc_profile" not in image.info


def test_jpeg_encoding_keeps_the_image():
    data = encoded(photo(48, 48), "PNG")
    found = pillow(pack_image(data, "jpeg", 48, "squash")[1])
    assert abs(found.astype(int) - photo(48, 48).astype(int)).mean() < 2
