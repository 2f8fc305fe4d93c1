"""Judgement sets: each row of the file is found in the table, with its images, and all ways of packing agree."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.on_ray import pack_shard
from fastdps.packing.options import PackOptions, Share
from fastdps.packing.pack import merge, pack
from fastdps.packing.sources.folder import Folder
from fastdps.packing.sources.registry import open_source
from fastdps.packing.work import PackedShard
from fastdps.shards.format import read_manifest
from fastdps.shards.judgements import read_judgements, read_names
from helpers.judgement_files import (
    assert_same,
    expected_of,
    judgements_of,
    names_of,
    random_rows,
    write_csv,
    write_images,
)
from helpers.packed import digests, read_images, write_noise_folder
from helpers.shard_sets import open_set

ROOT = Path(__file__).parents[2]
IMAGES, ROWS = 40, 300


def options(**changes):
    return PackOptions(**{"size": 8, "samples_per_shard": 7, **changes})


@pytest.fixture
def source(tmp_path) -> Path:
    write_images(tmp_path / "in", IMAGES)
    return write_csv(tmp_path / "in/judged.csv", random_rows(ROWS, IMAGES))


def test_every_row_is_found_with_its_images_and_votes(tmp_path, source):
    pack(open_source("judgements", source, by="person"), tmp_path / "out", options(), workers=1)
    train, expected = tmp_path / "out/train", expected_of(source, "person")
    found = judgements_of(train)
    assert [row["row"] for row in found] == sorted(expected)
    for row in found:
        assert_same(row, expected[row["row"]])
    names, made = names_of(train), write_images(tmp_path / "in", IMAGES)
    packed = read_images(train, 8)
    assert list(names) == sorted(packed)
    assert sorted(names.values()) == sorted(made)  # each once
    assert all((packed[key] == made[name]).all() for key, name in names.items())
    assert list(names.values()) != sorted(names.values())  # shuffled


def test_the_reader_returns_what_pyarrow_reads(tmp_path, source):
    pack(open_source("judgements", source, by="person"), tmp_path / "out", options(), workers=1)
    table, manifest = read_judgements(tmp_path / "out/train"), read_manifest(tmp_path / "out/train")
    rows = pq.read_table(tmp_path / "out/train/judgements.parquet").to_pylist()
    for name in ("ref", "a", "b", "votes_a", "votes_b", "row"):
        assert getattr(table, name).tolist() == [row[name] for row in rows]
    assert table.judges == ("person-0", "person-1", "person-2")
    assert [table.judges[judge] for judge in table.judge] == [row["judge"] for row in rows]
    assert read_names(tmp_path / "out/train") == names_of(tmp_path / "out/train")
    assert manifest.kind == "judgements"
    assert manifest.source["result"] == {"judgements": ROWS, "judges": 3, "lost_rows": 0}
    some = table.select(table.judge == 1)
    assert len(some) == (table.judge == 1).sum()
    assert some.judges == table.judges


@pytest.mark.parametrize("loader", ["dali", "portable"])
def test_the_images_are_loaded_as_those_of_an_image_set(tmp_path, source, loader):
    pack(open_source("judgements", source), tmp_path / "out", options(), workers=1)
    loaded = open_set(tmp_path / "out/train", batch_size=16, loader=loader)
    packed = read_images(tmp_path / "out/train", 8)
    seen = {}
    for batch in loaded.epoch(0):
        seen |= {int(key): pixels.numpy() for key, pixels in zip(batch.ids, batch.images, strict=True)}
    assert sorted(seen) == sorted(packed)
    assert all((seen[key] == packed[key]).all() for key in seen)


@pytest.mark.parametrize(
    ("file", "by", "judges"), [("materials/train.csv", None, 0), ("food/triplets.csv", None, 0),
                               ("objects/triplets.csv", "person", 16)]
)  # fmt: skip
def test_real_judgements_are_found_row_by_row(tmp_path, judgements, file, by, judges):
    pack(open_source("judgements", judgements / file, by=by), tmp_path, PackOptions(size=32), workers=1)
    expected = expected_of(judgements / file, by)
    found = judgements_of(tmp_path / "train")
    assert [row["row"] for row in found] == sorted(expected)
    for row in found:
        assert_same(row, expected[row["row"]])
    assert len(read_judgements(tmp_path / "train").judges) == judges


def test_a_real_set_is_small(tmp_path, judgements):
    out = tmp_path / "out"
    materials = open_source("judgements", judgements / "materials/train.csv", holdout_by="row")
    pack(materials, out, PackOptions(size=128, encoding="jpeg", holdout=0.2), workers=1)
    assert sum(path.stat().st_size for path in out.rglob("*")) < 8e6
    sizes = [len(read_judgements(out / split)) for split in ("train", "val")]
    assert sizes == [18241, 4560]


# ---- the same bytes ----


@pytest.fixture
def expected(tmp_path, source):
    pack(judged(source), tmp_path / "expected", options(holdout=0.3), workers=1)
    return digests(tmp_path / "expected")


def judged(source):
    return open_source("judgements", source, by="person", holdout_by="row")


def test_three_workers_write_the_bytes_of_one(tmp_path, source, expected):
    pack(judged(source), tmp_path / "out", options(holdout=0.3), workers=3)
    assert digests(tmp_path / "out") == expected
    assert {path.rpartition("/")[2] for path in expected} >= {"samples.parquet", "judgements.parquet"}


def test_merged_parts_have_the_bytes_of_one_run(tmp_path, source, expected):
    for index in range(3):
        pack(judged(source), tmp_path / "out", options(holdout=0.3), workers=1, share=Share(index, 3))
        assert not list(tmp_path.glob("out/*/*.parquet"))
    merge(judged(source), tmp_path / "out", options(holdout=0.3))
    assert digests(tmp_path / "out") == expected


class OnAnotherMachine:
    """An executor whose workers get their work as bytes, as those of a Ray cluster do."""

    def run(self, works, report):
        for work in works:
            packed = pack_shard(pickle.loads(pickle.dumps(work)))
            yield PackedShard(work, packed.record)


def test_workers_of_a_cluster_write_the_same_bytes(tmp_path, source, expected):
    pack(judged(source), tmp_path / "out", options(holdout=0.3), workers=OnAnotherMachine())
    assert digests(tmp_path / "out") == expected


def test_object_storage_has_the_bytes_of_a_directory(tmp_path, source, expected):
    url, memory = f"memory://{tmp_path.name}/set", fsspec.filesystem("memory")
    try:
        pack(judged(source), url, options(holdout=0.3), workers=1)
        memory.get(f"/{tmp_path.name}/set", str(tmp_path / "fetched"), recursive=True)
        assert digests(tmp_path / "fetched") == expected
        assert len(read_judgements(f"{url}/val")) == round(0.3 * ROWS)
        assert read_names(f"{url}/val") == names_of(tmp_path / "expected/val")
    finally:
        memory.rm(f"/{tmp_path.name}", recursive=True)


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, source, expected):
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "tools/make_shards.py"), "judgements", "--source", str(source), "--out"]
    command += [str(out), "--size", "8", "--samples-per-shard", "7", "--holdout", "0.3", "--holdout-by", "row"]
    command += ["--by", "person", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("train/*.tar")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert digests(out) == expected


@pytest.mark.parametrize("at", ["samples.parquet", "judgements.parquet", "rejected_rows.jsonl", "manifest.json"])
def test_a_run_that_dies_at_a_table_leaves_no_set_and_resumes(tmp_path, source, expected, monkeypatch, at):
    from fastdps.packing.target import Directory

    write = Directory.write_bytes

    def fail(target, name, content):
        if name == at:
            raise FastDPSError("killed")
        write(target, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Directory, "write_bytes", fail)
        with pytest.raises(FastDPSError, match="killed"):
            pack(judged(source), tmp_path / "out", options(holdout=0.3), workers=1)
    assert not list(tmp_path.glob("out/*/manifest.json"))
    pack(judged(source), tmp_path / "out", options(holdout=0.3), workers=1)
    assert digests(tmp_path / "out") == expected


def test_a_finished_set_is_left_as_it_is(tmp_path, source, expected):
    def times():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "expected").rglob("*") if path.is_file()}

    before = times()
    pack(judged(source), tmp_path / "expected", options(holdout=0.3), workers=1)
    assert times() == before


def test_a_changed_file_is_refused_and_overwrite_removes_the_tables(tmp_path, source):
    pack(judged(source), tmp_path / "out", options(), workers=1)
    source.write_text(source.read_text().replace("person-0", "person-9"))
    with pytest.raises(ConfigError, match="sha256 was"):
        pack(judged(source), tmp_path / "out", options(), workers=1)
    write_noise_folder(tmp_path / "photos", 3)
    pack(Folder(tmp_path / "photos"), tmp_path / "out", options(), workers=1, overwrite=True)
    names = {path.name for path in (tmp_path / "out/train").iterdir()}
    assert names == {"manifest.json", "rejects.jsonl", "samples.parquet", "shard-000000.idx", "shard-000000.tar"}


# ---- every kind of set has names ----


def test_an_id_leads_back_to_its_source_file(tmp_path):
    made = write_noise_folder(tmp_path / "in", 23)
    (tmp_path / "in/a/000.png").write_bytes(b"no image")
    pack(Folder(tmp_path / "in"), tmp_path / "out", options(size=16, holdout=0.2, max_rejects=0.1), workers=1)
    seen = []
    for split in ("train", "val"):
        names, packed = names_of(tmp_path / "out" / split), read_images(tmp_path / "out" / split, 16)
        assert list(names) == sorted(packed)
        assert all((packed[key] == made[name]).all() for key, name in names.items())
        seen += names.values()
    assert sorted(seen) == sorted(set(made) - {"a/000.png"})


def test_a_set_of_version_1_is_read_and_left_as_it_is(tmp_path):
    """A set that an earlier version packed: no tables, and no key for them."""
    write_noise_folder(tmp_path / "in", 5)
    pack(Folder(tmp_path / "in"), tmp_path / "out", options(size=16), workers=1)
    train = tmp_path / "out/train"
    content = json.loads((train / "manifest.json").read_text())
    new = read_manifest(train)
    del content["tables"]
    (train / "manifest.json").write_text(json.dumps({**content, "format_version": 1}))
    (train / "samples.parquet").unlink()
    old = read_manifest(train)
    assert (old.format_version, old.tables, read_names(train)) == (1, {}, {})
    assert old.content_sha256() == new.content_sha256()
    before = digests(train)
    pack(Folder(tmp_path / "in"), tmp_path / "out", options(size=16), workers=1)
    assert digests(train) == before
    assert json.loads(old.to_json()) == json.loads((train / "manifest.json").read_text())


def test_packing_and_the_command_start_without_pyarrow():
    code = (
        "import sys, fastdps.commands.cli, fastdps.commands.make_shards, fastdps.packing.pack, fastdps.report.gallery"
    )
    names = "print([name for name in sys.modules if name.partition('.')[0] == 'pyarrow'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", f"{code}; {names}"], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout == "[]\n"


def test_workers_get_no_judgements(source):
    split = open_source("judgements", source).splits()["train"]
    sent = pickle.loads(pickle.dumps(split))
    assert len(pickle.dumps(split)) < 1000
    item = split.items()[0]
    assert sent.read(item) == split.read(item)
    assert (sent.name(item), sent.kind) == (item, "judgements")


def test_a_judgement_is_hashed_with_the_set(tmp_path, source):
    hashes = []
    for number, old in enumerate(["person-0", "person-1"]):
        changed = source.with_name(f"{number}.csv")
        changed.write_text(source.read_text().replace(old, "x"))
        result = pack(open_source("judgements", changed, by="person"), tmp_path / str(number), options(), workers=1)
        hashes.append(result.manifests["train"])
    assert hashes[0].shards == hashes[1].shards
    assert hashes[0].content_sha256() != hashes[1].content_sha256()
