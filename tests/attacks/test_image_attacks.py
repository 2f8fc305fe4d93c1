"""Mutated JPEGs and PNGs, from fixed seeds, through packing, checking and both loaders, each in its own process."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.verify import check_set
from helpers.isolated import NAMED, Case, attack, expect
from helpers.mutations import mutated
from helpers.packed import encoded, photo
from helpers.shard_sets import described, write_index, write_set

HAS_DALI = importlib.util.find_spec("nvidia.dali") is not None if importlib.util.find_spec("nvidia") else False
if HAS_DALI:
    import fastdps.loading.dali  # noqa: F401  # by the server, once for all cases

#: Mutated images; `make attacks` raises it.
IMAGES = 40 * int(os.environ.get("FASTDPS_ATTACKS", "1"))
HEIGHT, WIDTH = 48, 64
VICTIM = 3


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description" * 10
    return exif.tobytes()


PIXELS = photo(HEIGHT, WIDTH)
FORMS: dict[str, tuple[str, bytes]] = {
    "JPEG": ("jpg", encoded(PIXELS, "JPEG")),
    "progressive JPEG": ("jpg", encoded(PIXELS, "JPEG", progressive=True)),
    "JPEG with restart markers": ("jpg", encoded(PIXELS, "JPEG", restart_marker_blocks=4)),
    "grey JPEG": ("jpg", encoded(PIXELS, "JPEG", mode="L")),
    "CMYK JPEG": ("jpg", encoded(PIXELS, "JPEG", mode="CMYK")),
    "JPEG with EXIF": ("jpg", encoded(PIXELS, "JPEG", exif=_exif(), icc_profile=bytes(range(256)))),
    "PNG": ("png", encoded(PIXELS, "PNG")),
    "palette PNG": ("png", encoded(PIXELS, "PNG", mode="P")),
    "PNG with alpha": ("png", encoded(PIXELS, "PNG", mode="RGBA")),
    "grey PNG": ("png", encoded(PIXELS, "PNG", mode="L")),
}
GOOD = {"jpg": [encoded(photo(HEIGHT, WIDTH, n), "JPEG") for n in range(6)]}
GOOD["png"] = [encoded(photo(HEIGHT, WIDTH, n), "PNG") for n in range(6)]
EXPECTED = {
    extension: [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int) for data in images]
    for extension, images in GOOD.items()
}


def make_image(seed: int, directory: Path) -> Case:
    draw = random.Random(f"images {seed}")
    form = draw.choice(list(FORMS))
    extension, data = FORMS[form]
    how, damaged = mutated(data, draw, head=700, others=[data for _, data in FORMS.values()])
    encoding = draw.choice(["raw", "jpeg", "png", "keep"])
    damaged = damaged or b"\0"
    samples = [{extension: image} for image in GOOD[extension]]
    samples[VICTIM] = {extension: damaged}
    shards = directory / "set"
    write_set(shards, samples, [6], encoding="jpeg" if extension == "jpg" else "png", image_size=(HEIGHT, WIDTH))
    readings: dict[str, Callable[[], object]] = {
        "portable": lambda: load(shards, "portable", extension),
        "check": lambda: check(shards, samples, {extension: data}, damaged),
        "pack": lambda: pack_and_load(directory, damaged, extension, encoding),
    }
    if HAS_DALI:
        readings["dali"] = lambda: load(shards, "dali", extension)
    return Case(f"{form}, {how}, packed as {encoding}", (str(directory),), readings)


def load(shards: Path, loader: str, extension: str) -> None:
    """Load a set; the images beside the damaged one must be what Pillow decodes."""
    options = LoadOptions(loader=loader, num_threads=2)
    for batch in open_shards(shards, batch_size=2, seed=None, options=options).epoch(0):
        assert batch.images.shape[1:] == (HEIGHT, WIDTH, 3)
        for number, image in zip(batch.ids.tolist(), batch.images.numpy().astype(int), strict=True):
            if number != VICTIM:
                wrong = np.abs(image - EXPECTED[extension][number]).max()
                expect(wrong <= 2, f"image {number} beside the damaged one differs by {wrong}")


def check(shards: Path, samples: list[dict[str, bytes]], sound: dict[str, bytes], damaged: bytes) -> None:
    """Check the set as it is, and with the checksum of the image before it was damaged, which must differ."""
    list(check_set(shards))
    before = shards.with_name("before")
    shutil.copytree(shards, before)
    original = shards.with_name("original")
    write_set(original, [*samples[:VICTIM], sound, *samples[VICTIM + 1 :]], [6], image_size=(HEIGHT, WIDTH))
    manifest = json.loads((before / "manifest.json").read_text())
    manifest["shards"] = [described(original / "shard-000000.tar", 6)]
    (before / "manifest.json").write_text(json.dumps(manifest))
    write_index(before / "shard-000000.tar")
    expect(damaged == next(iter(sound.values())) or list(check_set(before)), "check finds no problem")


def pack_and_load(directory: Path, damaged: bytes, extension: str, encoding: str) -> None:
    """Pack the image with two sound ones. What is not rejected must be a sound set."""
    source = directory / "images"
    source.mkdir()
    for name, data in (("a", GOOD[extension][0]), ("b", damaged), ("c", GOOD[extension][1])):
        (source / f"{name}.{extension}").write_bytes(data)
    size = None if encoding == "keep" else 32
    options = PackOptions(encoding=encoding, size=size, max_rejects=1.0)
    pack(source, directory / "out", options, workers=1)
    problems = list(check_set(directory / "out" / "train"))
    expect(not problems, f"the packed set has problems: {problems}")
    for loader in ("portable", "dali") if HAS_DALI else ("portable",):
        loaded = open_shards(
            directory / "out" / "train", batch_size=4, size=32, seed=None, options=LoadOptions(loader=loader)
        )
        images = sum(len(batch) for batch in loaded.epoch(0))
        expect(images in (2, 3), f"{images} images were packed")


def test_mutated_images_are_rejected_named_or_decoded(capfd):
    with capfd.disabled():
        counts = attack(__file__, "make_image", range(IMAGES))
    assert counts[NAMED] > IMAGES / 4  # the mutations do reach the decoders
