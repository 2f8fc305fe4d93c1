"""`check_shards`: every kind of damage is found and named, and an intact set passes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct

import numpy as np
import pytest

from fastdps.commands.check_shards import check_shards
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.folder import Folder
from fastdps.packing.sources.triplets import Triplets
from helpers.packed import encoded, photo, write_noise_folder


@pytest.fixture(params=["raw", "jpeg", "png", "keep"])
def packed_set(request, tmp_path):
    write_noise_folder(tmp_path / "in", 7)
    (tmp_path / "in/photo.jpg").write_bytes(encoded(photo(40, 50), "JPEG"))
    size = None if request.param == "keep" else 16
    pack(Folder(tmp_path / "in"), tmp_path / "out", PackOptions(request.param, size, samples_per_shard=4), workers=1)
    return tmp_path / "out/train"


@pytest.fixture
def raw_set(tmp_path):
    write_noise_folder(tmp_path / "in", 8)
    pack(Folder(tmp_path / "in"), tmp_path / "out", PackOptions(size=16, samples_per_shard=4), workers=1)
    return tmp_path / "out/train"


@pytest.fixture
def triplet_set(tmp_path):
    write_noise_folder(tmp_path / "in", 6)
    rows = [["a/000.png", "b/001.png", "a/002.png", 0.5], ["b/003.png", "a/004.png", "b/005.png", 1]]
    table = "ref,p0,p1,judge\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "in/votes.csv").write_text(table)
    pack(Triplets(tmp_path / "in/votes.csv"), tmp_path / "out", PackOptions(size=16), workers=1)
    return tmp_path / "out/train"


def check(capsys, directory, *options):
    """Run the check. Return the exit status, the output, and the errors without progress."""
    status = check_shards([str(directory), *options])
    captured = capsys.readouterr()
    return status, captured.out, "".join(re.split(r"(?m)^checking .* left\n", captured.err))


def assert_found(capsys, directory, *named, quick):
    """Check that the damage is found by the full check, and by the quick check if `quick`."""
    for options, found in (((), True), (("--quick",), quick)):
        status, out, err = check(capsys, directory, *options)
        assert status == (1 if found else 0), out
        if found:
            assert all(name in out for name in named), out
            assert "problem" in err
            assert str(directory) in err


def flip(path, at, bit=0):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_sound_sets_are_sound(capsys, packed_set):
    for options in ((), ("--quick",)):
        assert check(capsys, packed_set.parent, *options) == (0, f"{packed_set}: sound\n", "")


def test_a_sound_set_of_triplets_is_sound(capsys, triplet_set):
    assert check(capsys, triplet_set) == (0, f"{triplet_set}: sound\n", "")


@pytest.mark.parametrize("place", [0.0, 0.001, 0.02, 0.3, 0.5, 0.7, 0.999])
def test_a_bit_flip_anywhere_in_a_shard(capsys, packed_set, place):
    tar = packed_set / "shard-000001.tar"
    flip(tar, int(place * tar.stat().st_size), bit=3)
    assert_found(capsys, packed_set, str(tar), "does not have the checksum", quick=False)


def test_a_flip_that_spoils_an_image_names_the_member_too(capsys, tmp_path):
    write_noise_folder(tmp_path / "in", 3)
    pack(Folder(tmp_path / "in"), tmp_path / "out", PackOptions("png", 16), workers=1)
    index = (tmp_path / "out/train/shard-000000.idx").read_text().split("\n")[2].split(" ")
    flip(tmp_path / "out/train/shard-000000.tar", int(index[1]) + 60)
    assert_found(capsys, tmp_path / "out", f"member {index[3]} does not decode", quick=False)


@pytest.mark.parametrize("left", [0, 512, 2000, -1, -10240])
def test_a_cut_shard(capsys, packed_set, left):
    tar = packed_set / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:left])
    assert_found(capsys, packed_set, str(tar), f"has {tar.stat().st_size} bytes, and the manifest says", quick=True)


def test_a_missing_shard(capsys, packed_set):
    (packed_set / "shard-000001.tar").unlink()
    assert_found(capsys, packed_set, "shard-000001.tar: is missing", quick=True)


def test_a_missing_index(capsys, packed_set):
    (packed_set / "shard-000001.idx").unlink()
    assert_found(capsys, packed_set, "shard-000001.idx", "No such file", quick=True)


def test_the_index_of_another_shard(capsys, packed_set):
    shutil.copy(packed_set / "shard-000000.idx", packed_set / "shard-000001.idx")
    assert_found(capsys, packed_set, "shard-000001.idx: sample 000000000 does not come after", quick=True)


def edit_index(directory, change):
    path = directory / "shard-000000.idx"
    lines = [line.split(" ") for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("\n".join(" ".join(line) for line in lines) + "\n")


def set_cell(lines, row, column, value):
    lines[row][column] = value


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda lines: lines.pop(), "begins with"),
        (lambda lines: (lines.pop(), set_cell(lines, 0, 1, "3")), "has 3 samples, and the manifest says 4"),
        (lambda lines: set_cell(lines, 0, 0, "v1.1"), "begins with 'v1.1 4'"),
        (lambda lines: lines[2].pop(), "line 3 is not a list"),
        (lambda lines: set_cell(lines, 2, 1, "x"), "line 3: invalid literal"),
        (lambda lines: set_cell(lines, 4, 1, "999424"), "beyond the end"),
        (lambda lines: set_cell(lines, 2, 1, "513"), "which is not a valid offset"),
        (lambda lines: set_cell(lines, 3, 1, lines[2][1]), "which is not a valid offset"),
        (lambda lines: set_cell(lines, 3, 2, "-5"), "which is not a valid offset"),
        (lambda lines: set_cell(lines, 2, 0, "png"), "sample 000000001 has ['png']"),
        (lambda lines: set_cell(lines, 2, 3, "000000009.bin"), "does not come after sample 9"),
        (lambda lines: set_cell(lines, 2, 3, "../../x.bin"), "does not begin with a sample id"),
        (lambda lines: lines.insert(2, lines.pop(3)), "does not come after"),
    ],
)
def test_an_index_that_does_not_fit(capsys, raw_set, change, what):
    edit_index(raw_set, change)
    assert_found(capsys, raw_set, "shard-000000.idx", what, quick=True)


def test_an_index_that_is_shifted_within_bounds_is_found_by_reading_the_tar(capsys, raw_set):
    edit_index(raw_set, lambda lines: set_cell(lines, 4, 2, str(int(lines[4][2]) - 1)))
    assert_found(capsys, raw_set, "shard-000000.tar", "members that its index lists", quick=False)


def test_an_index_that_is_no_text(capsys, packed_set):
    (packed_set / "shard-000000.idx").write_bytes(b"\xff\xfe\x00")
    assert_found(capsys, packed_set, "shard-000000.idx", quick=True)


def test_a_manifest_of_a_newer_version(capsys, packed_set):
    rewrite(packed_set / "manifest.json", lambda content: content.update(format_version=3))
    assert_found(capsys, packed_set, "manifest.json", "format version 3", "update fastdps", quick=True)


def test_a_manifest_that_is_cut_or_missing(capsys, packed_set):
    manifest = packed_set / "manifest.json"
    manifest.write_text(manifest.read_text()[:-50])
    assert_found(capsys, packed_set, "manifest.json", "cannot be read as JSON", quick=True)
    manifest.unlink()
    assert_found(capsys, packed_set.parent, "manifest.json", "it has no manifest.json", quick=True)


def test_a_manifest_with_another_count_or_checksum(capsys, packed_set):
    manifest = packed_set / "manifest.json"
    rewrite(manifest, lambda content: content["shards"][0].update(sha256="0" * 64))
    assert_found(capsys, packed_set, "shard-000000.tar: does not have the checksum", quick=False)
    rewrite(manifest, lambda content: content.update(samples=9))
    assert_found(capsys, packed_set, "samples is 9", quick=True)


def test_a_manifest_of_another_image_size(capsys, packed_set):
    rewrite(packed_set / "manifest.json", lambda content: content.update(image_size=[16, 17]))
    status, out, _ = check(capsys, packed_set)
    assert status == 1
    assert "member 000000000" in out


def test_a_shard_that_is_not_in_the_manifest(capsys, packed_set):
    shutil.copy(packed_set / "shard-000000.tar", packed_set / "shard-000009.tar")
    assert_found(capsys, packed_set, "shard-000009.tar: is not in the manifest", quick=True)


def test_an_unfinished_set(capsys, packed_set):
    (packed_set / "manifest.json").unlink()
    (packed_set / "progress.jsonl").write_text("{}\n")
    assert_found(
        capsys,
        packed_set.parent,
        f"{packed_set}: is not finished: run the same `fastdps pack` command again",
        quick=True,
    )


def test_votes_out_of_range(capsys, triplet_set):
    """Simulate a writer that put invalid content into the shard, with the matching checksum."""
    tar, manifest = triplet_set / "shard-000000.tar", triplet_set / "manifest.json"
    offset = int((triplet_set / "shard-000000.idx").read_text().split("\n")[1].split(" ")[13])
    for value in (2.0, np.nan):
        data = bytearray(tar.read_bytes())
        data[offset : offset + 4] = struct.pack("<f", value)
        tar.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        rewrite(manifest, lambda content, digest=digest: content["shards"][0].update(sha256=digest))
        assert_found(capsys, triplet_set, f"000000000.judge.f32 is {value}", "not a share of votes", quick=False)


def test_all_sets_below_a_directory_are_checked(capsys, tmp_path):
    write_noise_folder(tmp_path / "in", 8)
    pack(Folder(tmp_path / "in"), tmp_path / "out", PackOptions(size=16, holdout=0.5), workers=1)
    flip(tmp_path / "out/train/shard-000000.tar", 700)
    flip(tmp_path / "out/val/shard-000000.tar", 700)
    status, out, err = check(capsys, tmp_path / "out")
    assert status == 1
    assert out.count("does not have the checksum") == 2
    assert "2 problems" in err


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_directory_without_sets_is_an_error(capsys, tmp_path, name):
    (tmp_path / "empty").mkdir()
    status, _, err = check(capsys, tmp_path / name)
    assert status == 1
    assert str(tmp_path / name) in err
