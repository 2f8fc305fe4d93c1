"""BAPPS and the user's own triplets: layouts, pairing, votes, and reading through both loaders."""

from __future__ import annotations

import io
import json
import logging
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from fastdps.errors import FastDPSError
from fastdps.loading.loader import open_shards
from fastdps.loading.options import LoadOptions
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.bapps import PUBLISHED, Bapps
from fastdps.packing.sources.triplets import Triplets
from helpers.packed import encoded, noise, read_lines, read_set

OPTIONS = PackOptions(size=64, samples_per_shard=4, max_rejects=0.5)
IMAGES = {"triplets": ("ref", "p0", "p1"), "pairs": ("p0", "p1")}
VOTES = {"triplets": "judge", "pairs": "same"}
#: Sub-sets with their kinds, numbers of samples, and shares of votes that occur.
LAYOUT = {
    "2afc/train/traditional": ("triplets", 6, (0.0, 0.5, 1.0)),
    "2afc/train/mix": ("triplets", 5, (0.0, 0.5, 1.0)),
    "2afc/val/cnn": ("triplets", 7, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    "2afc/val/frameinterp": ("triplets", 3, (0.2, 0.8)),
    "jnd/val/cnn": ("pairs", 4, (0.0, 1 / 3, 2 / 3, 1.0)),
}


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR, "fastdps.packing.sources.bapps")


@pytest.fixture
def example(lpips_example):
    """Return the pixels of the real triplet by component."""
    return {
        name: np.asarray(Image.open(lpips_example / f"ex_{name}.png").convert("RGB")) for name in IMAGES["triplets"]
    }


def changed(pixels, number):
    """Return the example's image with rotated values, different for each sample."""
    return np.roll(pixels, (number, 2 * number), axis=(0, 1))


def write_bapps(root, example):
    """Write the directories of BAPPS. Return the content of each sample by sub-set and name."""
    made = {}
    for path, (kind, count, shares) in LAYOUT.items():
        for number in range(count):
            name, sample = f"{number:06d}", {}
            for component in IMAGES[kind]:
                sample[component] = changed(example[component], number)
                file = root / path / component / f"{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded(sample[component], "PNG"))
            sample[VOTES[kind]] = shares[number % len(shares)]
            file = root / path / VOTES[kind] / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.array([sample[VOTES[kind]]], dtype=np.float32))
            made[path, name] = sample
    return made


def assert_same_samples(directory, expected, loader):
    """Check that a loader reads exactly the expected samples."""
    kind = open_shards(directory, batch_size=2, options=LoadOptions(loader=loader)).manifest.kind
    images, votes = IMAGES[kind], VOTES[kind]
    found = set()
    for batch in open_shards(directory, batch_size=3, options=LoadOptions(loader=loader)).epoch(0):
        for row in range(len(batch)):
            pixels = [batch.components[name][row].numpy().tobytes() for name in images]
            found.add((*pixels, float(batch.components[votes][row])))
    assert found == {
        (*(sample[name].tobytes() for name in images), float(np.float32(sample[votes]))) for sample in expected
    }


@pytest.mark.parametrize("loader", ["dali", "portable"])
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_bapps_comes_back_through_the_loaders(tmp_path, example, loader, encoding):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    made = write_bapps(tmp_path / "in", example)
    result = pack(Bapps(tmp_path / "in"), tmp_path / "out", PackOptions(encoding, 64, samples_per_shard=4), workers=1)
    assert set(result.manifests) == set(LAYOUT)
    for path, (kind, count, _) in LAYOUT.items():
        manifest = result.manifests[path]
        assert (manifest.kind, manifest.samples) == (kind, count)
        expected = [sample for (where, _), sample in made.items() if where == path]
        assert_same_samples(tmp_path / "out" / path, expected, loader)


def test_a_leading_directory_makes_no_difference(tmp_path, example):
    write_bapps(tmp_path / "a/dataset", example)
    write_bapps(tmp_path / "b", example)
    for name in "ab":
        pack(Bapps(tmp_path / name), tmp_path / f"out-{name}", OPTIONS, workers=1)
    for path in LAYOUT:
        assert read_set(tmp_path / "out-a" / path) == read_set(tmp_path / "out-b" / path)


def test_some_sub_sets_can_be_chosen(tmp_path, example):
    write_bapps(tmp_path / "in", example)
    result = pack(Bapps(tmp_path / "in"), tmp_path / "out", OPTIONS, splits=["jnd/val/cnn"], workers=1)
    assert list(result.manifests) == ["jnd/val/cnn"]


def rejects(directory):
    return {line["item"]: line["reason"] for line in read_lines(directory / "rejects.jsonl")}


def test_files_belong_together_by_name(tmp_path, example):
    """With a missing file, pairing by position would shift all later files."""
    made = write_bapps(tmp_path / "in", example)
    sub_set = tmp_path / "in/2afc/val/cnn"
    (sub_set / "p1/000002.png").unlink()
    (sub_set / "judge/000004.npy").unlink()
    shutil.copy(sub_set / "ref/000000.png", sub_set / "ref/000900.png")
    pack(Bapps(tmp_path / "in"), tmp_path / "out", OPTIONS, splits=["2afc/val/cnn"], workers=1)
    reasons = rejects(tmp_path / "out/2afc/val/cnn")
    assert set(reasons) == {f"2afc/val/cnn/{name}" for name in ("000002", "000004", "000900")}
    assert reasons["2afc/val/cnn/000002"].startswith("p1/000002.png cannot be read")
    good = [
        sample for (path, name), sample in made.items() if path == "2afc/val/cnn" and name not in ("000002", "000004")
    ]
    assert_same_samples(tmp_path / "out/2afc/val/cnn", good, "portable")


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        (np.array([1.2]), "not a share of votes"),
        (np.array([-0.2]), "not a share of votes"),
        (np.array([np.nan]), "not a share of votes"),
        (np.array([0.2, 0.4]), "does not contain exactly one number"),
        (np.array(["0.2"]), "does not contain exactly one number"),
        (np.array([{"a": 1}], dtype=object), "is not a NumPy array"),
        (b"", "is not a NumPy array"),
        (b"\x93NUMPY\x01\x00", "is not a NumPy array"),
    ],
)
def test_votes_that_are_none(tmp_path, example, votes, reason):
    write_bapps(tmp_path / "in", example)
    path = tmp_path / "in/jnd/val/cnn/same/000001.npy"
    if isinstance(votes, bytes):
        path.write_bytes(votes)
    else:
        np.save(path, votes)
    pack(Bapps(tmp_path / "in"), tmp_path / "out", OPTIONS, splits=["jnd/val/cnn"], workers=1)
    assert list(rejects(tmp_path / "out/jnd/val/cnn")) == ["jnd/val/cnn/000001"]
    assert reason in rejects(tmp_path / "out/jnd/val/cnn")["jnd/val/cnn/000001"]


@pytest.mark.parametrize("votes", [np.float32(0.4), np.array(0.4), np.array([[0.4]]), np.array([1])])
def test_votes_in_any_shape_of_one_number(tmp_path, example, votes):
    write_bapps(tmp_path / "in", example)
    np.save(tmp_path / "in/jnd/val/cnn/same/000001.npy", votes)
    result = pack(Bapps(tmp_path / "in"), tmp_path / "out", OPTIONS, splits=["jnd/val/cnn"], workers=1)
    assert result.manifests["jnd/val/cnn"].samples == 4


def test_a_number_of_samples_other_than_published_is_a_warning(tmp_path, example, caplog):
    write_bapps(tmp_path / "in", example)
    caplog.set_level(logging.WARNING, "fastdps.packing.sources.bapps")
    Bapps(tmp_path / "in").splits()["2afc/val/cnn"].items()
    assert "2afc/val/cnn has 7 samples, but 4720 were published" in caplog.text
    caplog.clear()
    Bapps(tmp_path / "in").splits()["2afc/train/mix"].items()
    assert caplog.text == ""
    assert sum(PUBLISHED.values()) == 36344  # the published total of the six


def test_another_or_an_incomplete_data_set_is_an_error(tmp_path, example):
    (tmp_path / "in").mkdir()
    with pytest.raises(FastDPSError, match="is not BAPPS"):
        Bapps(tmp_path / "in").splits()
    with pytest.raises(FastDPSError, match="is not a directory"):
        Bapps(tmp_path / "nowhere").splits()
    write_bapps(tmp_path / "in", example)
    shutil.rmtree(tmp_path / "in/2afc/val/cnn/judge")
    with pytest.raises(FastDPSError, match="2afc/val/cnn has no directory judge"):
        pack(Bapps(tmp_path / "in"), tmp_path / "out", OPTIONS)
    for component in ("ref", "p0", "p1"):
        shutil.rmtree(tmp_path / "in/2afc/val/frameinterp" / component)
        (tmp_path / "in/2afc/val/frameinterp" / component).mkdir()
    shutil.rmtree(tmp_path / "in/2afc/val/frameinterp/judge")
    (tmp_path / "in/2afc/val/frameinterp/judge").mkdir()
    with pytest.raises(FastDPSError, match="frameinterp has no samples"):
        Bapps(tmp_path / "in").splits()["2afc/val/frameinterp"].items()


def write_triplets(root, form, rows):
    """Write a table in the format of the file name."""
    root.mkdir(exist_ok=True)
    names = ("ref", "p0", "p1", "judge")
    path = root / f"votes.{form}"
    if form == "csv":
        path.write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]) + "\n")
    else:
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path):
    """Return valid rows, and write the images that they name."""
    (tmp_path / "in/images").mkdir(parents=True)
    for number in range(6):
        (tmp_path / f"in/images/{number}.png").write_bytes(encoded(noise(64, 64, 3, seed=number), "PNG"))
    file = "images/{}.png".format
    return [[file(0), file(1), file(2), 0.25], [file(0), file(3), file(4), 1], [file(5), file(0), file(1), 0.0]]


@pytest.mark.parametrize("loader", ["dali", "portable"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_triplets_come_back_through_the_loaders(tmp_path, rows, form, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    result = pack(Triplets(write_triplets(tmp_path / "in", form, rows)), tmp_path / "out", OPTIONS, workers=2)
    assert result.manifests["train"].kind == "triplets"
    expected = []
    for *files, judge in rows:
        images = [np.asarray(Image.open(tmp_path / "in" / file)) for file in files]
        expected.append({**dict(zip(IMAGES["triplets"], images, strict=True)), "judge": judge})
    assert_same_samples(tmp_path / "out/train", expected, loader)


def test_votes_are_stored_as_little_endian_float32(tmp_path, rows):
    pack(Triplets(write_triplets(tmp_path / "in", "csv", rows)), tmp_path / "out", OPTIONS, workers=1)
    members = read_set(tmp_path / "out/train")
    assert [list(sample) for sample in members.values()] == [["ref.bin", "p0.bin", "p1.bin", "judge.f32"]] * 3
    assert sorted(struct.unpack("<f", sample["judge.f32"])[0] for sample in members.values()) == [0.0, 0.25, 1.0]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_bad_rows_are_rejected_by_line(tmp_path, rows, form):
    bad = [
        ["images/9.png", *rows[0][1:]],
        [*rows[0][:3], 1.5],
        [*rows[0][:3], "yes"],
        [*rows[0][:3], "nan"],
        [*rows[0][:3], 10**400],
        ["", *rows[0][1:]],
    ]
    path = write_triplets(tmp_path / "in", form, [*rows, *bad])
    pack(Triplets(path), tmp_path / "out", PackOptions(max_rejects=0.8), workers=1)
    reasons = rejects(tmp_path / "out/train")
    first = len(rows) + (2 if form == "csv" else 1)
    assert {int(name.split()[1].rstrip(":")) for name in reasons} == set(range(first, first + len(bad)))
    missing = next(reason for name, reason in reasons.items() if "9.png" in name)
    assert missing.startswith("ref cannot be read")
    assert sum("not a share of votes" in reason for reason in reasons.values()) == 4


def test_other_columns_and_orders_and_quotes_are_fine(tmp_path, rows):
    (tmp_path / "in/images/0.png").rename(tmp_path / "in/images/a, b.png")
    path = tmp_path / "in/votes.csv"
    lines = ["who,judge,p1,p0,ref", '"me, too",0.5,images/2.png,images/1.png,"images/a, b.png"', ""]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    source = Triplets(path)
    (row,) = source.items()
    sample = source.read(row)
    assert sample["judge"] == 0.5
    assert (np.asarray(Image.open(io.BytesIO(sample["ref"]))) == noise(64, 64, 3, seed=0)).all()


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("x.csv", "ref,p0,p1\na,b,c\n", "judge are missing"),
        ("x.csv", "", "ref, p0, p1, judge are missing"),
        ("x.csv", "ref,p0,p1,judge\n", "lists no triplets"),
        ("x.csv", "ref,p0,p1,judge\na,b,c\n", "line 2 does not have 4 cells"),
        ("x.csv", "ref,p0,p1,judge\na,b,c,1,2\n", "line 2 does not have 4 cells"),
        ("x.csv", "ref,p0,ref,p1,judge\na,b,c,d,1\n", "names the columns ref more than once"),
        ("x.csv", b"\xff\xfe", "can't decode"),
        ("x.jsonl", '{"ref": "a", "p0": "b", "p1": "c", "judge": 0, "judge": 1}\n', "judge comes twice"),
        ("x.jsonl", "[" * 100_000 + "\n", "line 1 is not JSON"),
        ("x.jsonl", '{"ref": 1}\n', "line 1 must be an object with"),
        ("x.jsonl", '\n["a"]\n', "line 2 must be an object with"),
        ("x.jsonl", "{\n", "line 1 is not JSON"),
        ("x.txt", "", r"must be a \.csv or \.jsonl file"),
        ("nowhere.csv", None, "No such file"),
    ],
)
def test_an_invalid_table_is_an_error(tmp_path, name, text, what):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FastDPSError, match=what) as caught:
        Triplets(tmp_path / name).items()
    assert name in str(caught.value)


def test_a_null_byte_in_a_path_is_rejected(tmp_path, rows):
    path = write_triplets(tmp_path / "in", "jsonl", [*rows, ["a\0b.png", *rows[0][1:]]])
    result = pack(Triplets(path), tmp_path / "out", OPTIONS, workers=1)
    assert len(result.rejects["train"]) == 1
    assert torch.is_tensor(next(iter(open_shards(tmp_path / "out/train", batch_size=3).epoch(0))).components["ref"])
