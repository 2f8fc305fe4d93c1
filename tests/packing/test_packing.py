"""A packed set: bytes, index, order and manifest."""

from __future__ import annotations

import hashlib
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import PackProgress, pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.packing.sources.folder import Folder
from fastdps.shards.format import read_manifest
from helpers.packed import Numbers, digests, encoded, photo, read_images, read_set, write_noise_folder

SIDE = 16


@pytest.fixture
def made(tmp_path):
    return write_noise_folder(tmp_path / "in", 23, SIDE)


@pytest.fixture
def source(tmp_path, made):
    return Folder(tmp_path / "in")


def options(**changes):
    return PackOptions(**{"size": SIDE, "samples_per_shard": 9, **changes})


def names_by_id(made, directory):
    """Return the file of each sample, identified by its pixels."""
    by_pixels = {pixels.tobytes(): name for name, pixels in made.items()}
    return {key: by_pixels[pixels.tobytes()] for key, pixels in read_images(directory, SIDE).items()}


def test_every_image_is_packed_once_under_ids_that_count_up(tmp_path, source, made):
    pack(source, tmp_path / "out", options(), workers=1)
    found = names_by_id(made, tmp_path / "out/train")
    assert list(found) == list(range(23))  # in the order of the tars and of their members
    assert sorted(found.values()) == sorted(made)


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "png", "keep"])
def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, source, encoding):
    (source.root / "c.jpg").write_bytes(encoded(photo(40, 50), "JPEG"))
    (source.root / "broken.jpg").write_bytes(b"no image")
    size = None if encoding == "keep" else SIDE
    # 25 shards, more than there are chunks in flight at a time.
    chosen = options(encoding=encoding, size=size, holdout=0.3, max_rejects=0.1, samples_per_shard=1)
    for workers in (1, 2, 3):
        pack(source, tmp_path / str(workers), chosen, workers=workers)
    one = digests(tmp_path / "1")
    assert {"train/shard-000001.tar", "train/shard-000001.idx", "val/manifest.json", "val/rejects.jsonl"} <= set(one)
    assert digests(tmp_path / "2") == one
    assert digests(tmp_path / "3") == one


@pytest.mark.parametrize("encoding", ["raw", "keep"])
def test_the_index_is_that_of_dali(tmp_path, source, encoding):
    wds2idx = pytest.importorskip("wds2idx")
    (source.root / "c.jpg").write_bytes(encoded(photo(40, 50), "JPEG"))
    pack(source, tmp_path / "out", options(encoding=encoding, size=None if encoding == "keep" else SIDE), workers=1)
    tars = sorted((tmp_path / "out/train").glob("*.tar"))
    assert len(tars) == 3
    for tar in tars:
        creator = wds2idx.IndexCreator(str(tar), str(tmp_path / "theirs.idx"), verbose=False)
        creator.create_index()
        creator.close()
        assert tar.with_suffix(".idx").read_text() == (tmp_path / "theirs.idx").read_text()


def test_a_tar_says_nothing_but_its_content(tmp_path, source):
    pack(source, tmp_path / "out", options(), workers=1)
    with tarfile.open(tmp_path / "out/train/shard-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.isreg()


def test_the_manifest_describes_the_set(tmp_path, source):
    pack(source, tmp_path / "out", options(holdout=0.2, seed=5), workers=1)
    content = json.loads((tmp_path / "out/train/manifest.json").read_text())
    shards = content.pop("shards")
    tables = content.pop("tables")
    listing = content["source"].pop("listing")
    assert content == {
        "format_version": 2,
        "kind": "images",
        "components": {"image": "bin"},
        "encoding": "raw",
        "image_size": [SIDE, SIDE],
        "samples": 18,
        "source": {
            "split": "train",
            "name": "folder",
            "kind": "images",
            "items": 23,
            "encoding": "raw",
            "size": SIDE,
            "fit": "squash",
            "samples_per_shard": 9,
            "holdout": 0.2,
            "seed": 5,
        },
    }
    assert len(listing) == 16
    names = (tmp_path / "out/train/samples.parquet").read_bytes()
    assert tables == {"samples.parquet": {"rows": 18, "bytes": len(names), "sha256": hashlib.sha256(names).hexdigest()}}
    for shard in shards:
        data = (tmp_path / "out/train" / shard["name"]).read_bytes()
        assert shard == {
            "name": shard["name"],
            "samples": 9,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    assert {path.name for path in (tmp_path / "out/train").iterdir()} == {
        *(shard["name"] for shard in shards),
        *(shard["name"].replace("tar", "idx") for shard in shards),
        "manifest.json",
        "samples.parquet",
        "rejects.jsonl",
    }
    assert (tmp_path / "out/train/rejects.jsonl").read_bytes() == b""


def test_a_holdout_divides_the_images(tmp_path, source, made):
    result = pack(source, tmp_path / "out", options(holdout=0.25), workers=1)
    train, val = (names_by_id(made, tmp_path / "out" / split) for split in ("train", "val"))
    assert len(val) == round(0.25 * 23)
    assert sorted([*train.values(), *val.values()]) == sorted(made)
    assert {split: manifest.samples for split, manifest in result.manifests.items()} == {"train": 17, "val": 6}
    assert list(val) == list(range(6))


def test_the_order_is_shuffled_by_the_seed_alone(tmp_path, source, made):
    orders = {}
    for name, seed, per_shard in (("a", 0, 9), ("b", 0, 4), ("c", 1, 9)):
        pack(source, tmp_path / name, options(seed=seed, samples_per_shard=per_shard), workers=1)
        orders[name] = list(names_by_id(made, tmp_path / name / "train").values())
    assert orders["a"] == orders["b"]
    assert orders["a"] != orders["c"]
    assert orders["a"] != sorted(made)
    in_first_folder = [name.startswith("a/") for name in orders["a"]]
    assert any(in_first_folder[:9])
    assert not all(in_first_folder[:9])  # shards mix the folders


def test_a_finished_set_is_left_alone_and_overwritten_when_asked(tmp_path, source):
    out = tmp_path / "out"
    pack(source, out, options(holdout=0.2), workers=1)
    tar = out / "train/shard-000000.tar"
    before = digests(out)
    tar.write_bytes(b"not touched")
    read = []
    pack(
        source,
        out,
        options(holdout=0.2),
        workers=1,
        progress=PackProgress(start=lambda total, found: read.append((total, found))),
    )
    assert tar.read_bytes() == b"not touched"
    assert read == [(23, 23)]
    pack(source, out, options(holdout=0.2), workers=1, overwrite=True)
    assert digests(out) == before


def test_overwriting_leaves_no_split_of_the_set_before(tmp_path, source, made):
    pack(source, tmp_path / "out", options(holdout=0.3), workers=1)
    (tmp_path / "out/notes.txt").write_text("mine")
    pack(source, tmp_path / "out", options(), workers=1, overwrite=True)
    assert sorted(names_by_id(made, tmp_path / "out/train").values()) == sorted(made)
    assert not (tmp_path / "out/val").exists()
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"size": 8}, "size was 16 and is now 8"),
        ({"fit": "crop"}, "fit was 'squash' and is now 'crop'"),
        ({"holdout": 0.5}, "holdout was 0.0 and is now 0.5"),
        ({"encoding": "png"}, "encoding was 'raw' and is now 'png'"),
    ],
)
def test_other_options_are_refused_and_nothing_is_changed(tmp_path, source, change, named):
    pack(source, tmp_path / "out", options(), workers=1)
    before = digests(tmp_path / "out")
    with pytest.raises(ConfigError, match=named):
        pack(source, tmp_path / "out", options(**change), workers=1)
    assert digests(tmp_path / "out") == before


def test_a_source_that_has_changed_is_refused(tmp_path, source):
    pack(source, tmp_path / "out", options(), workers=1)
    (source.root / "a/000.png").rename(source.root / "a/renamed.png")
    with pytest.raises(ConfigError, match="listing was"):
        pack(source, tmp_path / "out", options(), workers=1)


def test_two_runs_into_one_directory_are_refused(tmp_path):
    def run_another(item):
        if item == 3:
            with pytest.raises(FastDPSError, match="another run is packing"):
                pack(Numbers(5), tmp_path, PackOptions(size=8), workers=1)

    result = pack(Numbers(9, on_read=run_another), tmp_path, PackOptions(size=8), workers=1)
    assert result.manifests["train"].samples == 9


def test_progress_adds_up(tmp_path, source):
    steps: list[int] = []
    started = []
    pack(
        source,
        tmp_path / "out",
        options(holdout=0.2),
        workers=2,
        progress=PackProgress(lambda *counts: started.append(counts), steps.append),
    )
    assert started == [(23, 0)]
    assert sum(steps) == 23


def test_splits_can_be_chosen_and_unknown_ones_are_named(tmp_path, source):
    with pytest.raises(ConfigError, match="no split test; it has train"):
        pack(source, tmp_path / "out", options(), splits=["test"])
    result = pack(source, tmp_path / "out", options(), splits=["train"], workers=1)
    assert list(result.manifests) == ["train"]


def test_pixels_from_a_source_are_resized_and_encoded(tmp_path):
    leaves = DeadLeaves(count=3, size=32, seed=1)
    pack(leaves, tmp_path / "same", PackOptions(size=32), workers=1)
    pack(leaves, tmp_path / "half", PackOptions(size=16), workers=1)
    pack(leaves, tmp_path / "keep", PackOptions(encoding="keep", size=None), workers=1)
    same, half = read_images(tmp_path / "same/train", 32), read_images(tmp_path / "half/train", 16)
    for key, pixels in same.items():
        expected = Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(half[key], np.asarray(expected))
    assert [list(members) for members in read_set(tmp_path / "keep/train").values()] == [["png"]] * 3
    assert read_manifest(tmp_path / "keep/train").image_size is None


@pytest.mark.parametrize(
    "bad",
    [
        {"encoding": "gif"},
        {"fit": "stretch"},
        {"size": 0},
        {"size": 9460},
        {"size": None},
        {"encoding": "keep", "size": 8},
        {"samples_per_shard": 0},
        {"samples_per_shard": 10_000_001},
        {"holdout": 1.0},
        {"holdout": -0.1},
        {"max_rejects": 1.5},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_errors(bad):
    with pytest.raises(ConfigError):
        PackOptions(**bad)


def test_a_holdout_that_empties_a_split_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"a holdout of 0\.1 of 3 items"):
        pack(Numbers(3), tmp_path, PackOptions(holdout=0.1))


def test_large_images_are_packed_in_smaller_chunks(tmp_path):
    class Seen(Numbers):
        def read(self, item):
            return {"image": np.full((1200, 1200, 3), item, np.uint8)}

    steps: list[int] = []
    pack(Seen(3), tmp_path, PackOptions(size=1200), workers=1, progress=PackProgress(advance=steps.append))
    assert steps == [1, 1, 1]
