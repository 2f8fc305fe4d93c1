"""Packing in parts, as in an array of jobs, and merging."""

from __future__ import annotations

import shutil
import threading

import pytest

from fastdps.commands.make_shards import make_shards
from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.options import PackOptions, Share
from fastdps.packing.pack import PackProgress, merge, pack
from helpers.packed import Numbers, digests, read_images

SOURCE = Numbers(50, frozenset({3, 7}))


def options(**changes):
    return PackOptions(**{"size": 8, "samples_per_shard": 4, "holdout": 0.2, "max_rejects": 0.1, **changes})


def pack_parts(out, count, *, source=SOURCE, only=None, **changes):
    for index in range(count) if only is None else only:
        pack(source, out, options(**changes), workers=1, share=Share(index, count))


@pytest.fixture
def expected(tmp_path):
    pack(SOURCE, tmp_path / "expected", options(), workers=1)
    return digests(tmp_path / "expected")


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_merged_parts_have_the_bytes_of_one_run(tmp_path, expected, count):
    pack_parts(tmp_path / "out", count, only=reversed(range(count)))
    assert not list(tmp_path.glob("out/*/manifest.json"))
    result = merge(SOURCE, tmp_path / "out", options())
    assert digests(tmp_path / "out") == expected
    assert sum(manifest.samples for manifest in result.manifests.values()) == 48
    assert sorted(reject.item for rejects in result.rejects.values() for reject in rejects) == ["number 3", "number 7"]


def test_parts_divide_the_shards_and_the_progress(tmp_path):
    seen, started = [], []
    for index in range(3):
        items: list[int] = []
        pack(
            Numbers(50, on_read=seen.append), tmp_path, options(), workers=1, share=Share(index, 3),
            progress=PackProgress(lambda *counts: started.append(counts), items.append),
        )  # fmt: skip
        assert sum(items) == started[-1][0]
        numbers = {int(path.stem.partition("-")[2]) for path in (tmp_path / "train").glob("*.tar")}
        assert numbers == {number for number in range(10) if number % 3 <= index}
    assert sorted(seen) == list(range(50))
    assert sum(total for total, _ in started) == 50


def test_parts_side_by_side_leave_each_other_alone(tmp_path, expected):
    """Part 1 runs completely while part 0 is in the middle of a shard."""
    out, begun, go_on = tmp_path / "out", threading.Event(), threading.Event()

    def wait(_):
        begun.set()
        assert go_on.wait(60)

    first = threading.Thread(target=lambda: pack_first(out, wait))
    first.start()
    assert begun.wait(60)
    partial = {path.name for path in out.rglob("*.partial")}
    assert partial
    with pytest.raises(FastDPSError, match="another run of part 0/2 is packing"):
        pack_parts(out, 2, only=[0])
    with pytest.raises(FastDPSError, match="another run is packing"):
        merge(SOURCE, out, options())
    with pytest.raises(FastDPSError, match="another run is packing"):
        pack(SOURCE, out, options(), workers=1)
    pack_parts(out, 2, only=[1])
    assert partial <= {path.name for path in out.rglob("*.partial")}
    go_on.set()
    first.join()
    merge(SOURCE, out, options())
    assert digests(out) == expected


def pack_first(out, on_read):
    source = Numbers(50, SOURCE.bad, on_read=on_read)
    pack(source, out, options(), workers=1, share=Share(0, 2))


def test_gaps_are_refused_with_the_parts_that_fill_them(tmp_path, expected):
    out = tmp_path / "out"
    pack_parts(out, 4, only=[0, 2])
    before = digests(out)
    with pytest.raises(FastDPSError) as caught:
        merge(SOURCE, out, options())
    message = str(caught.value)
    assert "train lacks 5 of 10 shards (1, 3, 5, 7, 9), which belong to --part 1/4, --part 3/4" in message
    assert "val lacks 1 of 3 shards (1), which belong to --part 1/4" in message
    assert digests(out) == before
    pack_parts(out, 4, only=[1, 3])
    merge(SOURCE, out, options())
    assert digests(out) == expected


@pytest.mark.parametrize("damage", ["gone", "cut", "index gone"])
def test_a_shard_that_is_not_there_in_full_is_a_gap(tmp_path, damage):
    pack_parts(tmp_path, 2)
    tar = tmp_path / "train/shard-000003.tar"
    if damage == "cut":
        tar.write_bytes(tar.read_bytes()[:-1])
    else:
        (tar if damage == "gone" else tar.with_suffix(".idx")).unlink()
    with pytest.raises(FastDPSError, match=r"train lacks 1 of 10 shards \(3\), which belong to --part 1/2\."):
        merge(SOURCE, tmp_path, options())


def test_a_set_that_no_part_has_started_is_reported_as_missing(tmp_path):
    with pytest.raises(FastDPSError, match="train lacks 10 of 10 shards"):
        merge(SOURCE, tmp_path / "out", options())


def test_another_identity_is_refused_by_parts_and_merge(tmp_path):
    pack_parts(tmp_path, 2, only=[0])
    before = digests(tmp_path)
    with pytest.raises(ConfigError, match="seed was 0 and is now 1"):
        pack_parts(tmp_path, 2, only=[1], seed=1)
    with pytest.raises(ConfigError, match="seed was 0 and is now 1"):
        merge(SOURCE, tmp_path, options(seed=1))
    with pytest.raises(ConfigError, match="items was 50 and is now 51"):
        merge(Numbers(51), tmp_path, options())
    assert digests(tmp_path) == before


class StopError(Exception):
    """An error that a test raises to end a run."""


def test_an_interrupted_part_resumes(tmp_path, expected):
    out, read = tmp_path / "out", []

    def stop(number):
        read.append(number)
        if len(read) == 14:
            raise StopError

    with pytest.raises(StopError):
        pack(Numbers(50, SOURCE.bad, on_read=stop), out, options(), workers=1, share=Share(1, 2))
    assert len(list(out.rglob("*.tar"))) == 3
    again = []
    pack(Numbers(50, SOURCE.bad, on_read=again.append), out, options(), workers=1, share=Share(1, 2))
    assert not set(read[:12]) & set(again) - SOURCE.bad
    pack_parts(out, 2, only=[0])
    merge(SOURCE, out, options())
    assert digests(out) == expected


def test_one_run_completes_unfinished_parts(tmp_path, expected):
    pack_parts(tmp_path / "out", 3, only=[1])
    pack_parts(tmp_path / "out", 2, only=[0])  # another division
    again = []
    pack(Numbers(50, SOURCE.bad, on_read=again.append), tmp_path / "out", options(), workers=1)
    assert len(set(again) - SOURCE.bad) < 20
    assert digests(tmp_path / "out") == expected


def test_a_repaired_item_replaces_the_shard_of_another_division(tmp_path):
    pack_parts(tmp_path / "out", 2)
    pack_parts(tmp_path / "out", 3, source=Numbers(50))  # packs the shards with 3 and 7 again
    merge(Numbers(50), tmp_path / "out", options())
    pack(Numbers(50), tmp_path / "expected", options(), workers=1)
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
    assert len(read_images(tmp_path / "out/train", 8)) == 40


def test_rejects_of_all_parts_together_are_bounded(tmp_path):
    source = Numbers(50, frozenset(range(6)))
    pack_parts(tmp_path, 10, source=source)
    with pytest.raises(FastDPSError, match="6 items were rejected and at most 5 may be"):
        merge(source, tmp_path, options())
    assert not list(tmp_path.glob("*/manifest.json"))
    merge(source, tmp_path, options(max_rejects=0.12))
    pack(source, tmp_path / "expected", options(max_rejects=0.12), workers=1)
    assert digests(tmp_path / "train") == digests(tmp_path / "expected/train")


def test_a_part_that_alone_has_too_many_rejects_fails_and_lists_its_own(tmp_path):
    source = Numbers(50, frozenset(range(40)))
    with pytest.raises(FastDPSError, match=r"8 items were rejected and at most 5 .*rejects-1-of-2\.jsonl"):
        pack_parts(tmp_path, 2, only=[1], source=source)


def test_a_finished_set_is_left_alone_by_parts_and_merge(tmp_path, expected):
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "expected", out)
    pack_parts(out, 2, only=[1])
    merge(SOURCE, out, options())
    assert digests(out) == expected


@pytest.mark.parametrize("text", ["", "1", "a/2", "2/2", "8/8", "-1/2", "0/0", "1/2/3"])
def test_an_invalid_part_is_refused(text):
    with pytest.raises(ConfigError, match="--part"):
        Share.parse(text)


def test_parts_on_the_command_line(tmp_path, capsys):
    def run(*arguments):
        common = ["deadleaves", "--count", "12", "--size", "8", "--samples-per-shard", "5", "--workers", "1"]
        status = make_shards([*common, *map(str, arguments)])
        return status, capsys.readouterr()

    out = ["--out", tmp_path / "out"]
    status, said = run(*out, "--part", "0/2")
    assert status == 0
    assert "train: this part is done, 1 shard is left to other parts" in said.out
    assert "with --merge instead of --part once all parts are done" in said.out
    assert run(*out, "--merge")[1].err.startswith("error: not all shards are packed")
    status, said = run(*out, "--part", "1/2")
    assert "all shards are packed\nRun the same command with --merge instead of --part now.\n" in said.out
    status, said = run(*out, "--merge")
    assert status == 0
    assert "train: 12 samples in 3 shards" in said.out
    run("--out", tmp_path / "expected")
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
    for wrong, message in (
        (["--part", "0/2", "--overwrite"], "--part cannot go with --overwrite"),
        (["--merge", "--overwrite"], "--merge keeps what the parts have packed"),
        (["--part", "2/2"], "parts count from 0 to N-1"),
        (["--ray-address", "auto"], "--ray-address is the address of the cluster for --executor ray"),
    ):
        status, said = run(*out, *wrong)
        assert status == 1
        assert message in said.err
