"""Packing into object storage: the same files as in a directory, also after faults."""

from __future__ import annotations

import fsspec
import pytest

from fastdps.commands.check_shards import check_shards
from fastdps.commands.make_shards import make_shards
from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing import ledger
from fastdps.packing.on_ray import pack_shard
from fastdps.packing.options import PackOptions, Share
from fastdps.packing.pack import merge, pack
from fastdps.packing.plan import plan_sets
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.packing.target import target_at
from fastdps.packing.work import PackedShard, ShardWork
from fastdps.shards.storage import Store, locate
from helpers.packed import Numbers, digests

SOURCE = Numbers(50, frozenset({3, 7}))
OPTIONS = PackOptions(size=8, samples_per_shard=4, holdout=0.2, max_rejects=0.1)


@pytest.fixture
def url(tmp_path):
    """Return a URL in fsspec's in-memory file system, which is shared by the whole process."""
    yield f"memory://{tmp_path.name}/set"
    memory = fsspec.filesystem("memory")
    if memory.exists(f"/{tmp_path.name}"):
        memory.rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def expected(tmp_path):
    pack(SOURCE, tmp_path / "expected", OPTIONS, workers=1)
    return digests(tmp_path / "expected")


def stored(url, tmp_path):
    """Return the digests of the files at a URL."""
    memory, root = fsspec.filesystem("memory"), url.removeprefix("memory:/")
    there = tmp_path / "fetched"
    for path in memory.find(root):
        local = there / path.removeprefix(root + "/")
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(memory.cat_file(path))
    return digests(there)


def files_of(url):
    return set(fsspec.filesystem("memory").find(url.removeprefix("memory:/")))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_are_those_of_a_directory(tmp_path, url, workers):
    result = pack(DeadLeaves(50, 8, 0), url, OPTIONS, workers=workers)
    pack(DeadLeaves(50, 8, 0), tmp_path / "here", OPTIONS, workers=1)
    assert stored(url, tmp_path) == digests(tmp_path / "here")
    assert str(result.out / "train") == f"{url}/train"
    assert sorted(result.manifests) == ["train", "val"]


def test_nothing_is_left_on_this_machine(tmp_path, url, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    pack(SOURCE, url, OPTIONS, workers=1)
    assert not list((tmp_path / "temporary").iterdir())


def test_few_uploads_run_concurrently_with_packing(tmp_path, url, expected, monkeypatch):
    """The next shard is packed during an upload, and at most three shards are on the local disk."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    here, put = [], Store.put

    def slow(store, name, path):
        here.append(len(list((tmp_path / "temporary").rglob("*.tar.*"))))
        put(store, name, path)

    monkeypatch.setattr(Store, "put", slow)
    pack(SOURCE, url, OPTIONS, workers=1)
    assert 1 <= max(here) <= 4
    assert stored(url, tmp_path) == expected


class StopError(Exception):
    """An error that a test raises to end a run."""


def interrupt(url, after, *, saves=True):
    """Start a run that ends after some items: cleanly if it `saves`, otherwise as if it were killed."""
    read = []

    def stop(number):
        read.append(number)
        if len(read) > after:
            raise StopError

    with pytest.MonkeyPatch.context() as patch:
        if not saves:
            patch.setattr(ledger.Ledger, "close", lambda self: None)
        with pytest.raises(StopError):
            pack(Numbers(50, SOURCE.bad, on_read=stop), url, OPTIONS, workers=1)


@pytest.mark.parametrize("every_s", [0.0, 10.0, 1e9])
@pytest.mark.parametrize("saves", [True, False])
def test_an_interrupted_run_resumes(tmp_path, url, expected, monkeypatch, every_s, saves):
    monkeypatch.setattr(ledger, "SAVE_EVERY_S", every_s)
    interrupt(url, 30, saves=saves)
    assert not any(name.endswith("manifest.json") for name in files_of(url))
    again: list[int] = []
    pack(Numbers(50, SOURCE.bad, on_read=again.append), url, OPTIONS, workers=1)
    if saves or every_s == 0:
        assert len(again) < 50
    else:
        assert len(again) >= 50  # it had said nothing of what it had done
    assert stored(url, tmp_path) == expected


@pytest.mark.parametrize("damage", ["cut", "gone", "index gone"])
def test_shards_that_are_not_there_in_full_are_made_again(tmp_path, url, expected, damage):
    interrupt(url, 30)
    train = Store(f"{url}/train")
    if damage == "cut":
        train.write("shard-000001.tar", train.read("shard-000001.tar")[:-1])
    else:
        train.remove("shard-000001.tar" if damage == "gone" else "shard-000001.idx")
    pack(SOURCE, url, OPTIONS, workers=1)
    assert stored(url, tmp_path) == expected


def test_strays_go_before_the_manifest_comes(tmp_path, url, expected):
    for name in ("shard-000099.tar", "shard-000099.idx"):
        Store(f"{url}/train").write(name, b"x")
    pack(SOURCE, url, OPTIONS, workers=1)
    assert stored(url, tmp_path) == expected


def test_parts_merge_and_gaps_are_refused(tmp_path, url, expected):
    pack(SOURCE, url, OPTIONS, workers=1, share=Share(1, 2))
    with pytest.raises(FastDPSError, match=r"train lacks 5 of 10 shards.* belong to --part 0/2"):
        merge(SOURCE, url, OPTIONS)
    pack(SOURCE, url, OPTIONS, workers=1, share=Share(0, 2))
    merge(SOURCE, url, OPTIONS)
    assert stored(url, tmp_path) == expected


def test_other_options_are_refused_and_overwriting_starts_from_scratch(tmp_path, url):
    interrupt(url, 30)
    other = PackOptions(size=8, samples_per_shard=5, max_rejects=0.1)
    with pytest.raises(ConfigError, match="samples_per_shard was 4 and is now 5"):
        pack(SOURCE, url, other, workers=1)
    pack(SOURCE, url, other, workers=1, overwrite=True)
    pack(SOURCE, tmp_path / "other", other, workers=1)
    assert stored(url, tmp_path) == digests(tmp_path / "other")


def test_an_upload_that_fails_ends_the_run_and_the_next_resumes(tmp_path, url, expected, monkeypatch):
    put = Store.put

    def fail(store, name, path):
        if name == "shard-000004.tar":
            raise FastDPSError(f"{store / name} cannot be written")
        put(store, name, path)

    monkeypatch.setattr(Store, "put", fail)
    with pytest.raises(FastDPSError, match=r"shard-000004\.tar cannot be written"):
        pack(SOURCE, url, OPTIONS, workers=1)
    monkeypatch.undo()
    pack(SOURCE, url, OPTIONS, workers=1)
    assert stored(url, tmp_path) == expected


def test_a_worker_of_a_cluster_uploads_by_itself(tmp_path, url, expected):
    class Uploading:
        def run(self, works, report):
            for work in works:
                yield PackedShard(work, pack_shard(work).record)

    pack(SOURCE, url, OPTIONS, workers=Uploading())
    assert stored(url, tmp_path) == expected


def test_what_a_worker_is_sent_is_one_shard(url):
    import pickle

    plan = plan_sets(Numbers(100_000), PackOptions(size=8, samples_per_shard=50))[0]
    work = ShardWork(plan.name, plan.source, plan.shards[7], OPTIONS, target_at(locate(url) / "train"))
    sent = pickle.dumps(ShardWork(**{**vars(work), "source": Numbers}))  # the source has a function that is not sent
    assert len(sent) < 3000


@pytest.mark.parametrize(
    ("out", "message"),
    [("pipe:cat", "commands are never run"), ("https://host/x", "web server"), ("s4://b/x", "commands are never run")],
)
def test_places_that_take_no_files_are_refused(tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        pack(SOURCE, out, OPTIONS, workers=1)
    assert not list(tmp_path.iterdir())


def test_packing_and_checking_from_the_command_line(tmp_path, url, capsys):
    pack_it = ["deadleaves", "--count", "12", "--size", "8", "--samples-per-shard", "5", "--workers", "1", "--out", url]
    assert make_shards(pack_it) == 0
    assert f"{url}/train: 12 samples in 3 shards" in capsys.readouterr().out
    for arguments in ([url], [f"{url}/train"], [url, "--quick"]):
        assert check_shards(arguments) == 0
        assert capsys.readouterr().out == f"{url}/train: sound\n"
    train = Store(f"{url}/train")
    data = bytearray(train.read("shard-000001.tar"))
    data[700] ^= 255
    train.write("shard-000001.tar", bytes(data))
    train.write("shard-000009.tar", b"")
    train.remove("shard-000002.tar")
    assert check_shards([url]) == 1
    said = capsys.readouterr()
    assert f"{url}/train/shard-000009.tar: is not in the manifest\n" in said.out
    assert f"{url}/train/shard-000001.tar: does not have the checksum" in said.out
    assert f"{url}/train/shard-000002.tar: is missing\n" in said.out
    assert f"\nerror: 3 problems in {url}" in said.err


def test_an_unfinished_set_is_reported(url, capsys):
    interrupt(url, 30)
    assert check_shards([url]) == 1
    assert f"{url}/train: is not finished" in capsys.readouterr().out
    assert check_shards([url + "/nothing"]) == 1
    assert "contains no shard set" in capsys.readouterr().err
