"""Rejected items: listed, counted, bounded and retried."""

from __future__ import annotations

import os
import tracemalloc

import pytest

from fastdps.errors import FastDPSError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.folder import Folder
from fastdps.packing.sources.source import MAX_FILE_BYTES
from helpers.packed import Numbers, digests, encoded, noise, read_images, read_lines, read_set, write_noise_folder


def options(**changes):
    return PackOptions(**{"size": 8, "samples_per_shard": 4, **changes})


def rejected(directory):
    return {line["item"]: line["reason"] for line in read_lines(directory / "rejects.jsonl")}


def test_rejects_are_listed_with_their_reason_and_their_ids_are_missing(tmp_path):
    result = pack(Numbers(20, frozenset({3, 7})), tmp_path, options(max_rejects=0.1), workers=1)
    lines = read_lines(tmp_path / "train/rejects.jsonl")
    assert {line["item"]: line["reason"] for line in lines} == {"number 3": "is bad", "number 7": "is bad"}
    ids = {line["id"] for line in lines}
    assert sorted(read_set(tmp_path / "train")) == sorted(set(range(20)) - ids)
    assert result.manifests["train"].samples == 18
    assert [reject.item for reject in result.rejects["train"]] == [line["item"] for line in lines]


def test_a_reject_moves_no_other_sample(tmp_path):
    pack(Numbers(20), tmp_path / "all", options(), workers=1)
    pack(Numbers(20, frozenset({3})), tmp_path / "less", options(max_rejects=0.1), workers=1)
    all_images, images = read_images(tmp_path / "all/train", 8), read_images(tmp_path / "less/train", 8)
    assert len(images) == 19
    assert all((all_images[key] == pixels).all() for key, pixels in images.items())


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 0), (0.01, 0), (0.05, 1), (0.29, 5), (1.0, 20)])
def test_the_bound_is_a_share_of_all_items(tmp_path, share, allowed):
    for count in (allowed, allowed + 1):
        out = tmp_path / str(count)
        source = Numbers(20, frozenset(range(count)))
        if count == allowed:
            assert len(pack(source, out, options(max_rejects=share), workers=1).rejects["train"]) == count
        elif count <= 20:
            with pytest.raises(FastDPSError, match=f"{allowed + 1} items were rejected and at most {allowed} may be"):
                pack(source, out, options(max_rejects=share), workers=1)
            assert not (out / "train/manifest.json").exists()


def test_the_bound_holds_for_all_splits_together(tmp_path):
    source = Numbers(20, frozenset(range(4)))
    with pytest.raises(FastDPSError, match="4 items were rejected and at most 3 may be"):
        pack(source, tmp_path, options(max_rejects=0.15, holdout=0.5), workers=1)


def test_a_failed_run_names_the_first_rejects_and_the_files_with_all(tmp_path):
    source = Numbers(40, frozenset(range(5)))
    with pytest.raises(FastDPSError) as caught:
        pack(source, tmp_path, options(max_rejects=0.1, samples_per_shard=40), workers=1)
    message = str(caught.value)
    lines = read_lines(tmp_path / "train/rejects.jsonl")
    assert len(lines) == 5
    assert all(f"{line['item']} is bad" in message for line in lines[:3])
    assert str(tmp_path / "train/rejects.jsonl") in message
    assert "--max-rejects" in message


def test_packing_stops_at_the_bound_and_not_at_the_end_of_the_shard(tmp_path):
    read = []
    source = Numbers(500, frozenset(range(500)), on_read=read.append)
    with pytest.raises(FastDPSError):
        pack(source, tmp_path, options(samples_per_shard=500), workers=1)
    assert len(read) < 100


def test_a_failed_run_resumes_with_a_higher_limit(tmp_path):
    source = Numbers(20, frozenset(range(5)))
    with pytest.raises(FastDPSError):
        pack(source, tmp_path / "a", options(max_rejects=0.1), workers=1)
    for name in ("a", "b"):
        pack(source, tmp_path / name, options(max_rejects=0.5), workers=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_repaired_items_of_finished_shards_are_packed_by_the_next_run(tmp_path):
    bad = frozenset(range(5))
    with pytest.raises(FastDPSError):
        pack(Numbers(40, bad), tmp_path / "a", options(max_rejects=0.1), workers=1)
    assert len(read_lines(tmp_path / "a/train/progress.jsonl")) > 2  # some shards were finished, with rejects
    pack(Numbers(40), tmp_path / "a", options(), workers=1)
    pack(Numbers(40), tmp_path / "b", options(), workers=1)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(read_images(tmp_path / "a/train", 8)) == 40


def test_shards_whose_rejects_are_as_bad_as_before_are_not_made_again(tmp_path):
    bad = frozenset(range(5))
    with pytest.raises(FastDPSError):
        pack(Numbers(40, bad), tmp_path, options(max_rejects=0.1), workers=1)
    finished = len(read_lines(tmp_path / "train/progress.jsonl")) - 1
    read: list[int] = []
    pack(Numbers(40, bad, on_read=read.append), tmp_path, options(max_rejects=0.2), workers=1)
    again = 40 - 4 * finished
    assert again < len(read) <= again + len(bad)


def test_a_shard_of_rejects_alone_is_left_out(tmp_path):
    # Which four items the first shard has is decided by the seed.
    pack(Numbers(12), tmp_path / "all", options(), workers=1)
    first = {int(pixels[0, 0, 0]) for key, pixels in read_images(tmp_path / "all/train", 8).items() if key < 4}
    result = pack(Numbers(12, frozenset(first)), tmp_path / "some", options(max_rejects=0.5), workers=1)
    assert [shard.name for shard in result.manifests["train"].shards] == ["shard-000001.tar", "shard-000002.tar"]
    assert not (tmp_path / "some/train/shard-000000.tar").exists()


@pytest.fixture
def folder(tmp_path):
    write_noise_folder(tmp_path / "in", 8, 8)
    return Folder(tmp_path / "in")


def test_names_that_collide_are_different_samples(tmp_path, folder):
    for name in ("x/same.png", "y/same.png", "y/same.PNG", "y/same.jpg.png", "y/same.gif"):
        path = folder.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(noise(8, 8, 3, seed=len(name) + ord(name[0])), "PNG"))
    pack(folder, tmp_path / "out", options(), workers=1)
    images = read_images(tmp_path / "out/train", 8)
    assert len(images) == 13


def test_names_in_unicode_and_in_no_encoding_at_all(tmp_path, folder):
    names = ["grüße/ネコ.png", "emoji 😀 .png", "new\nline.png", '"quoted".png', os.fsdecode(b"latin-\xe9.png")]
    for name in names:
        (folder.root / name).parent.mkdir(exist_ok=True)
        (folder.root / name).write_bytes(b"broken")
    pack(folder, tmp_path / "out", options(max_rejects=0.5), workers=2)
    assert set(rejected(tmp_path / "out/train")) == {*names[:4], "latin-\\xe9.png"}
    for number, name in enumerate(names):
        (folder.root / name).write_bytes(encoded(noise(8, 8, 3, seed=100 + number), "PNG"))
    pack(folder, tmp_path / "out", options(), workers=2, overwrite=True)
    assert rejected(tmp_path / "out/train") == {}
    assert len(read_images(tmp_path / "out/train", 8)) == 13


def test_a_file_that_may_not_be_read_is_rejected(tmp_path, folder, monkeypatch):
    def refuse(path, *arguments):
        if os.fspath(path).endswith("003.png"):
            raise PermissionError(13, "Permission denied")
        return original(path, *arguments)

    original = os.open
    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    pack(folder, tmp_path / "out", options(max_rejects=0.2), workers=1)
    assert rejected(tmp_path / "out/train") == {"b/003.png": "cannot be read: Permission denied"}


def test_a_directory_that_may_not_be_listed_is_an_error(folder, monkeypatch):
    def refuse(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return original(path)

    original = os.scandir
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FastDPSError, match=r"in/b cannot be listed: Permission denied"):
        folder.items()


def test_links_in_circles_end(tmp_path, folder):
    before = list(folder.items())
    (folder.root / "a/up").symlink_to(folder.root)
    (folder.root / "b/self").symlink_to(folder.root / "b/self")
    (folder.root / "other").symlink_to(tmp_path / "elsewhere")
    assert folder.items() == before
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/new.png").write_bytes(encoded(noise(8, 8, 3, seed=50), "PNG"))
    (tmp_path / "elsewhere/back").symlink_to(folder.root)
    assert folder.items() == [*before, "other/new.png"]


def test_a_link_to_itself_or_to_nothing_or_a_pipe_is_rejected(tmp_path, folder):
    (folder.root / "loop.png").symlink_to(folder.root / "loop.png")
    (folder.root / "gone.png").symlink_to(folder.root / "nowhere.png")
    os.mkfifo(folder.root / "pipe.png")
    pack(folder, tmp_path / "out", options(max_rejects=0.5), workers=1)
    reasons = rejected(tmp_path / "out/train")
    assert set(reasons) == {"loop.png", "gone.png", "pipe.png"}
    assert all("cannot be read" in reason for reason in reasons.values())


def test_a_file_too_large_for_an_image_is_rejected_unread(tmp_path, folder):
    with (folder.root / "disk.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no room on disk
    tracemalloc.start()
    pack(folder, tmp_path / "out", options(max_rejects=0.5), workers=1)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "an image may have at most 268,435,456" in rejected(tmp_path / "out/train")["disk.png"]
    assert peak_bytes < MAX_FILE_BYTES / 4


def test_other_files_are_no_part_of_a_folder(folder):
    before = list(folder.items())
    (folder.root / "notes.txt").write_text("mine")
    (folder.root / "no_ending").write_text("mine")
    assert folder.items() == before


def test_a_source_without_images_or_without_a_directory_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FastDPSError, match="contains no image files"):
        Folder(tmp_path / "empty").items()
    with pytest.raises(FastDPSError, match="is not a directory"):
        Folder(tmp_path / "nowhere").items()


def test_a_source_that_goes_away_is_an_error_and_rejects_nothing(tmp_path, folder):
    items = folder.items()
    folder.root.rename(tmp_path / "moved")
    with pytest.raises(FastDPSError, match="no longer available"):
        folder.read(items[0])
