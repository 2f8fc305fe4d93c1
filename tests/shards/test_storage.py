from pathlib import Path

import pytest

from fastdps.errors import ConfigError, FastDPSError, ShardError
from fastdps.shards import storage
from fastdps.shards.storage import Store, locate, open_store
from helpers.servers import Faults, failing_proxy

CONTENT = bytes(range(256)) * 400


@pytest.fixture(autouse=True)
def _small_pieces_and_pauses(monkeypatch):
    monkeypatch.setattr(storage, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize("text", ["shards/train", "/a/b", ".", "a:b/c", "C:\\shards", "file"])
def test_paths_are_paths(text):
    assert locate(text) == Path(text)


def test_a_file_url_is_a_path():
    assert locate("file:///a/b%20c") == Path("/a/b c")


@pytest.mark.parametrize("url", ["s3://bucket/a/train", "gs://b/c", "https://host:8000/a%20b", "memory://x"])
def test_urls_are_stores_and_say_themselves(url):
    assert locate(url) == Store(url)
    assert str(locate(url + "/")) == url


def test_parts_of_urls():
    assert Store("s3://b/x") / "2afc" / "val" == Store("s3://b/x/2afc/val")
    assert (Store("https://h/x") / "a b#1").url == "https://h/x/a%20b%231"
    assert (Store("https://h/x") / "a b").name == "a b"
    assert Store("s3://bucket").name == "bucket"


@pytest.mark.parametrize(
    "text",
    ["pipe:cat x", "pipe:aws s3 cp s3://b/x -", "pipe://ls", "ssh://host/x", "s3:b/x", "s3://b/x::zip://y", "s4://b/x"],
)
def test_other_urls_are_rejected_and_never_run(text):
    with pytest.raises(ConfigError, match="commands are never run"):
        locate(text)


def test_a_mistyped_scheme_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'https'"):
        locate("htps://host/x")


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    storage._file_system.cache_clear()
    with pytest.raises(ConfigError, match=r"gcsfs.*fastdps\[remote\]"):
        open_store("gs://bucket/x")


def check_reading(store: Store) -> None:
    assert store.read("a.bin") == CONTENT
    assert b"".join(store.pieces("a.bin", len(CONTENT))) == CONTENT
    assert store.exists("a.bin")
    assert not store.exists("b.bin")
    with pytest.raises(ShardError, match=r"missing\.json does not exist"):
        store.read("missing.json")


def test_a_bucket(bucket, tmp_path):
    store = open_store(f"{bucket}/set/train")
    assert store.files() == {}
    tmp_path.joinpath("file").write_bytes(CONTENT)
    store.put("a.bin", tmp_path / "file")
    check_reading(store)
    store.write("m.json", b"{}")
    store.write("m.json", b"{} ")
    (store / "sub").write("x", b"1")
    assert store.files() == {"a.bin": len(CONTENT), "m.json": 3}
    assert [(one.url, one.name) for one in store.directories()] == [(f"{bucket}/set/train/sub", "sub")]
    store.remove("m.json")
    store.remove("m.json")
    assert list(store.files()) == ["a.bin"]


def test_a_web_server(web):
    directory, url = web
    directory.joinpath("a.bin").write_bytes(CONTENT)
    directory.joinpath("a b").mkdir()
    directory.joinpath("a b", "a.bin").write_bytes(CONTENT)
    check_reading(open_store(url))
    check_reading(open_store(url) / "a b")
    with pytest.raises(ShardError, match="does not list"):
        open_store(url).files()
    with pytest.raises(ConfigError, match="is read-only"):
        open_store(url).refuse_to_write()


@pytest.mark.parametrize("place", ["bucket", "web"])
def test_transient_errors_are_retried(place, request, s3_port, s3_at):
    where = request.getfixturevalue(place)
    faults = Faults(0.3, slow_s=0.01)
    if place == "bucket":
        open_store(where).write("a.bin", CONTENT)
        with failing_proxy(s3_port, faults) as port:
            s3_at(port)
            for number in range(4):
                check_reading(open_store(where))
                open_store(f"{where}/x").write(f"{number}.bin", CONTENT)
    else:
        where[0].joinpath("a.bin").write_bytes(CONTENT)
        with failing_proxy(int(where[1].rpartition(":")[2]), faults) as port:
            for _ in range(10):
                check_reading(open_store(f"http://127.0.0.1:{port}"))
    assert all(faults.done[kind] for kind in Faults.KINDS)


def test_a_dropped_connection_does_not_repeat_received_pieces(bucket, s3_port, s3_at):
    open_store(bucket).write("a.bin", CONTENT)
    faults = Faults(0)
    kinds = iter([*([""] * 4), "cut", "cut"])
    faults.next = lambda path: (faults.paths.update([path]), next(kinds, ""))[1]
    with failing_proxy(s3_port, faults) as port:
        s3_at(port)
        assert b"".join(open_store(bucket).pieces("a.bin", len(CONTENT))) == CONTENT
    assert sum(faults.paths.values()) == -(-len(CONTENT) // 10_000) + 2


def test_permanent_failure_is_an_error_that_names_the_file(web, caplog):
    faults = Faults(1.0, kinds=("refused",))
    with failing_proxy(int(web[1].rpartition(":")[2]), faults) as port:
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(
            ShardError, match=rf"{url}/manifest.json cannot be read, tried 9 times: 503.*Check the network"
        ):
            open_store(url).read("manifest.json")
        with pytest.raises(FastDPSError, match="tried 9 times"):
            open_store(url).exists("manifest.json")
    assert "retrying" in caplog.text


def test_missing_credentials_are_reported_at_once(monkeypatch, s3_port, s3_at):
    s3_at(s3_port)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(ShardError, match="credentials"):
        open_store("s3://bucket/x").read("manifest.json")
