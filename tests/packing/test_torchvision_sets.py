"""STL-10 and SVHN in small copies of their layouts on disk, read by torchvision's classes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from torchvision.datasets import STL10, SVHN

from fastdps.errors import FastDPSError
from fastdps.loading.loader import open_shards
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.torchvision_sets import stl10, svhn
from helpers.packed import noise, read_images

STL_COUNTS = {"train": 5, "test": 4, "unlabeled": 3}
SVHN_COUNTS = {"train": 6, "test": 3, "extra": 2}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def stl(tmp_path, monkeypatch):
    """Write `stl10_binary/*.bin`: column-major images, channels first, and labels. Return the pixels by split."""
    base = tmp_path / "in/stl10_binary"
    base.mkdir(parents=True)
    made = {split: noise(count, 96, 96, 3, seed=count) for split, count in STL_COUNTS.items()}
    for split, images in made.items():
        images.transpose(0, 3, 2, 1).tofile(base / f"{split}_X.bin")
        if split != "unlabeled":
            np.arange(1, len(images) + 1, dtype=np.uint8).tofile(base / f"{split}_y.bin")
    (base / "class_names.txt").write_text("\n".join(f"class{number}" for number in range(10)))
    (base / "fold_indices.txt").write_text("0 1\n")
    # torchvision knows the checksums of the real files.
    for list_name in ("train_list", "test_list"):
        files = [[name, md5(base / name)] for name, _ in getattr(STL10, list_name)]
        monkeypatch.setattr(STL10, list_name, files)
    return made


@pytest.fixture
def house_numbers(tmp_path, monkeypatch):
    """Write `*_32x32.mat` of MATLAB: X (32, 32, 3, n) and y (n, 1). Return the pixels by split."""
    scipy_io = pytest.importorskip("scipy.io")
    (tmp_path / "in").mkdir()
    made = {split: noise(count, 32, 32, 3, seed=count) for split, count in SVHN_COUNTS.items()}
    files = {}
    for split, images in made.items():
        path = tmp_path / f"in/{split}_32x32.mat"
        labels = np.arange(1, len(images) + 1, dtype=np.uint8)[:, None]
        scipy_io.savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": labels}, do_compression=True)
        files[split] = [SVHN.split_list[split][0], path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", files)
    return made


def packed_pixels(directory, side):
    return sorted(pixels.tobytes() for pixels in read_images(directory, side).values())


def test_stl10_has_the_pixels_of_its_files(tmp_path, stl):
    options = PackOptions(size=96, samples_per_shard=2)
    result = pack(stl10(tmp_path / "in"), tmp_path / "out", options, workers=2)
    assert {split: manifest.samples for split, manifest in result.manifests.items()} == STL_COUNTS
    for split, images in stl.items():
        assert packed_pixels(tmp_path / "out" / split, 96) == sorted(image.tobytes() for image in images)
    assert result.manifests["test"].source["name"] == "stl10"


def test_stl10_at_64_pixels_reads_back_through_the_loader(tmp_path, stl):
    pack(stl10(tmp_path / "in"), tmp_path / "out", PackOptions(), splits=["train"], workers=1)
    (batch,) = open_shards(tmp_path / "out/train", batch_size=8).epoch(0)
    assert batch.images.shape == (5, 64, 64, 3)
    assert not (tmp_path / "out/test").exists()


def test_svhn_has_the_pixels_of_its_files(tmp_path, house_numbers):
    result = pack(svhn(tmp_path / "in"), tmp_path / "out", PackOptions(size=32), workers=2)
    assert {split: manifest.samples for split, manifest in result.manifests.items()} == SVHN_COUNTS
    for split, images in house_numbers.items():
        assert packed_pixels(tmp_path / "out" / split, 32) == sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("make", [stl10, svhn])
def test_missing_files_are_an_error_that_says_what_to_do(tmp_path, make):
    with pytest.raises(FastDPSError, match=rf"in {tmp_path}, split train: .*--download"):
        pack(make(tmp_path), tmp_path / "out", PackOptions())


@pytest.mark.parametrize(("make", "of"), [(stl10, STL10), (svhn, SVHN)])
def test_a_failed_download_is_an_error(tmp_path, make, of, monkeypatch):
    def refuse(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(f"{of.__module__}.download_url", refuse, raising=False)
    monkeypatch.setattr(f"{of.__module__}.download_and_extract_archive", refuse, raising=False)
    with pytest.raises(FastDPSError, match=r"network is unreachable\. Check the network"):
        pack(make(tmp_path, download=True), tmp_path / "out", PackOptions())
