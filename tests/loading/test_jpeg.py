"""JPEGs decoded at reduced scale, against Pillow's reduced decoding and resizing, and unusual JPEGs."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from fastdps.errors import SampleError
from fastdps.shards import images
from fastdps.shards.images import decode as decode_for_packing
from helpers.packed import encoded, noise, photo
from helpers.shard_sets import open_set, write_set

SIZE = 64


def load(tmp_path, samples, size=SIZE, **options) -> list[np.ndarray]:
    """Return the samples that the portable loader yields, in packed order."""
    directory = write_set(tmp_path / "set", samples, [len(samples)], encoding="keep", image_size=None)
    opened = open_set(directory, batch_size=5, size=size, seed=None, loader="portable", **options)
    return [image.numpy() for batch in opened.epoch(0) for image in batch.images]


def by_pillow(data: bytes, size: tuple[int, int], scale: int) -> np.ndarray:
    """Decode at 1/scale with Pillow and resize to (height, width)."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if scale > 1:
            image.draft(None, (width // scale, height // scale))
        rgb = image.convert("RGB")
    assert rgb.size == (-(-width // scale), -(-height // scale))
    box = (0, 0, width / scale, height / scale)
    return np.asarray(rgb.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


@pytest.fixture(scope="module")
def photographs(imagenet_sample):
    """Every tenth of the real JPEGs, of any kind."""
    return [path.read_bytes() for path in sorted(imagenet_sample.glob("*/*.JPEG"))[::10]]


def test_the_scale_is_the_smallest_that_does_not_fall_below_the_target():
    for height, width, target in itertools.product((64, 127, 128, 300, 511, 512, 5000), (64, 128, 600), (32, 64)):
        scale = images.scale_for(height, width, (target, 64))
        fits = [s for s in (1, 2, 4, 8) if height >= s * target and width >= s * 64]
        assert scale == max(fits)


def test_photographs_equal_packing(tmp_path, photographs):
    for image, data in zip(load(tmp_path, [{"jpg": d} for d in photographs]), photographs, strict=True):
        np.testing.assert_array_equal(image, decode_for_packing(data, SIZE))


@pytest.mark.parametrize("size", [(48, 80), (200, 170)])
def test_photographs_equal_pillow(tmp_path, photographs, size):
    for image, data in zip(load(tmp_path, [{"jpg": d} for d in photographs], size), photographs, strict=True):
        with Image.open(io.BytesIO(data)) as opened:
            scale = images.scale_for(opened.height, opened.width, size)
            scale = 1 if opened.mode == "CMYK" else scale
        np.testing.assert_array_equal(image, by_pillow(data, size, scale))


def test_reduced_decoding_is_close_to_full_decoding(tmp_path, photographs):
    loaded = load(tmp_path, [{"jpg": d} for d in photographs])
    in_full = [by_pillow(data, (SIZE, SIZE), 1) for data in photographs]
    difference = np.stack(loaded).astype(int) - np.stack(in_full)
    assert 0 < np.abs(difference).mean() < 1.5  # levels of 255
    assert np.abs(difference).mean((1, 2, 3)).max() < 6
    assert np.abs(difference.mean((1, 2, 3))).max() < 1


FORMS = {
    "progressive": {"progressive": True},
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:1:1": {"subsampling": "4:1:1"},
    "restart markers": {"restart_marker_rows": 1},
    "a colour space of its own": {"keep_rgb": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_jpeg(tmp_path, form):
    data = encoded(photo(301, 260), "JPEG", **FORMS[form])
    (image,) = load(tmp_path, [{"jpg": data}])
    np.testing.assert_array_equal(image, by_pillow(data, (SIZE, SIZE), 4))


def test_grey_jpegs_become_rgb(tmp_path):
    data = encoded(photo(301, 260)[..., 0], "JPEG")
    (image,) = load(tmp_path, [{"jpg": data}])
    np.testing.assert_array_equal(image, by_pillow(data, (SIZE, SIZE), 4))


def test_cmyk_equals_pillow(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(photo(301, 260)).convert("CMYK").save(buffer, "JPEG")
    (image,) = load(tmp_path, [{"jpg": buffer.getvalue()}])
    np.testing.assert_array_equal(image, by_pillow(buffer.getvalue(), (SIZE, SIZE), 1))


@pytest.mark.parametrize(("extension", "form"), [("jpg", "PNG"), ("png", "JPEG")])
def test_content_matters_and_not_the_name(tmp_path, extension, form):
    pixels = photo(80, 70)
    data = encoded(pixels, form)
    (image,) = load(tmp_path, [{extension: data}])
    np.testing.assert_array_equal(image, by_pillow(data, (SIZE, SIZE), 1))


def test_a_flaw_that_pillow_tolerates_is_tolerated(tmp_path):
    data = encoded(photo(301, 260), "JPEG", restart_marker_rows=1)
    place = data.index(b"\xff\xd1", data.index(b"\xff\xda"))  # the second restart marker of the scan
    data = data[:place] + bytes([0x12, 0x34]) + data[place:]  # and meaningless bytes before it
    assert images.decode_resized(data, (SIZE, SIZE)) is None
    (image,) = load(tmp_path, [{"jpg": data}])
    np.testing.assert_array_equal(image, by_pillow(data, (SIZE, SIZE), 1))


def test_an_image_too_large_for_pillow_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 200 // 2 - 1)  # Pillow rejects twice as many
    with pytest.raises(SampleError, match=r"sample 0 .*exceeds limit"):
        load(tmp_path, [{"jpg": encoded(photo(300, 200), "JPEG")}])


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: bytes(64) + data[64:], lambda data: bytes(len(data))],
    ids=["cut", "without head", "zeroed"],
)
def test_damage_is_named_at_reduced_scale_too(tmp_path, damage):
    samples = [{"jpg": encoded(pixels, "JPEG")} for pixels in noise(7, 300, 200, 3)]
    samples[4] = {"jpg": damage(samples[4]["jpg"])}
    with pytest.raises(SampleError, match=r"sample 4 \(0*4\.jpg in .*shard-000000\.tar\).*fastdps check"):
        load(tmp_path, samples)
