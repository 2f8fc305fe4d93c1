"""Every kind of set in every encoding, read by webdataset and pyarrow alone, as somebody without fastdps would."""

import csv
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from helpers.packed import encoded, photo

SIDE, IMAGES = 16, 9
# webdataset leaves the tars open.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs, JPEGs and PNGs by turns, and the share of votes of triplet or pair N, that starts with image N."""
    root = tmp_path_factory.mktemp("plain")
    (root / "in").mkdir()
    files = []
    for number in range(IMAGES):
        name, form = (f"{number}.jpg", "JPEG") if number % 2 else (f"{number}.png", "PNG")
        (root / "in" / name).write_bytes(encoded(photo(SIDE, SIDE, seed=number), form))
        files.append(root / "in" / name)
    return files


def write_table(photos):
    """Judgement N: image N as the reference, the two after it, and N votes in 8."""
    path = photos[0].parent / "judged.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ref", "p0", "p1", "judge", "votes"])
        for n in range(IMAGES):
            writer.writerow([*(photos[(n + step) % IMAGES].name for step in range(3)), n / 8, 8])
    return path


def write_jnd(photos):
    """Pair N: the images N and N + 1, by N votes in 8 the same, in the files of BAPPS."""
    root = photos[0].parents[1] / "bapps"
    subset = root / "jnd/val/cnn"
    for component in ("p0", "p1", "same"):
        (subset / component).mkdir(parents=True, exist_ok=True)
    for n in range(IMAGES):
        for step in (0, 1):
            Image.open(photos[(n + step) % IMAGES]).save(subset / f"p{step}/{n:06d}.png")
        np.save(subset / f"same/{n:06d}.npy", np.array([n / 8]))
    return root


SOURCES = {
    "images": (lambda photos: open_source("folder", photos[0].parent), "train", ("image",)),
    "triplets": (lambda photos: open_source("triplets", write_table(photos)), "train", ("ref", "p0", "p1", "judge")),
    "pairs": (lambda photos: open_source("bapps", write_jnd(photos)), "jnd/val/cnn", ("p0", "p1", "same")),
    "judgements": (lambda photos: open_source("judgements", write_table(photos)), "train", ("image",)),
}
#: Largest mean difference of the pixels from those of the file.
LOSS = {"raw": 0, "png": 0, "keep": 0, "jpeg": 2}


def image_of(sample, component, encoding):
    """The pixels of a component, by webdataset's decoders; raw ones are bytes."""
    prefix = "" if component == "image" else f"{component}."
    if encoding == "raw":
        return np.frombuffer(sample[f"{prefix}bin"], np.uint8).reshape(SIDE, SIDE, 3)
    (extension,) = (f"{prefix}{e}" for e in ("jpg", "png") if f"{prefix}{e}" in sample)
    return sample[extension]


@pytest.mark.parametrize("encoding", LOSS)
@pytest.mark.parametrize("kind", SOURCES)
def test_webdataset_reads_every_kind_of_set(tmp_path, photos, kind, encoding):
    make, split, components = SOURCES[kind]
    size = None if encoding == "keep" else SIDE
    pack(make(photos), tmp_path, PackOptions(encoding, size, samples_per_shard=4), workers=1)
    directory = tmp_path / split
    urls = [str(path) for path in sorted(directory.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [int(sample["__key__"]) for sample in samples] == list(range(IMAGES))
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in photos]
    if components == ("image",):
        names = pq.read_table(directory / "samples.parquet")["name"].to_pylist()
        for sample, name in zip(samples, names, strict=True):
            close(image_of(sample, "image", encoding), pixels[int(name.split(".")[0])], encoding)
    else:
        *images, share = components
        found = [int(8 * np.frombuffer(sample[f"{share}.f32"], "<f4").item()) for sample in samples]
        assert sorted(found) == list(range(IMAGES))
        for sample, n in zip(samples, found, strict=True):
            for step, component in enumerate(images):
                close(image_of(sample, component, encoding), pixels[(n + step) % IMAGES], encoding)
    if kind == "judgements":
        table = pq.read_table(directory / "judgements.parquet").to_pylist()
        numbers = [int(name.split(".")[0]) for name in names]
        assert sorted(row["votes_b"] for row in table) == list(range(IMAGES))
        for row in table:
            n = int(row["votes_b"])
            assert [numbers[row[name]] for name in ("ref", "a", "b")] == [(n + step) % IMAGES for step in range(3)]


def close(found, expected, encoding):
    assert np.abs(found.astype(float) - expected).mean() <= LOSS[encoding]


def test_kept_files_are_those_of_the_source(tmp_path, photos):
    pack(open_source("folder", photos[0].parent), tmp_path, PackOptions("keep", None), workers=1)
    urls = [str(path) for path in sorted((tmp_path / "train").glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    jpegs = [sample["jpg"] for sample in samples if "jpg" in sample]
    assert sorted(jpegs) == sorted(path.read_bytes() for path in photos if path.suffix == ".jpg")
    assert all(Image.open(io.BytesIO(data)).size == (SIDE, SIDE) for data in jpegs)
