"""Credentials in URLs reach the server, and nothing that is printed, logged or raised."""

import pickle
import traceback

import pytest

from fastdps.errors import ConfigError, FastDPSError
from fastdps.packing.target import Remote
from fastdps.shards import storage
from fastdps.shards.credentials import hide_in, without_credentials
from fastdps.shards.storage import Store, locate, open_store
from helpers.servers import guarded_server

LOGIN, TOKEN = "me:pass-phrase", "to+ken/="
SECRETS = ["me:", "pass-phrase", TOKEN]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a@b/c", None),
        ("https://host:8000/a@b", None),
        ("http://[::1]/a@b", None),
        ("http://[::1]:80/a", None),
        ("a:b@c/d?e=f", None),
        ("s3://bucket/a#b", None),
        ("s3://KEY:SECRET@bucket/set", "s3://bucket/set"),
        ("s3://KEY:SEC/RET+=@bucket/set", "s3://bucket/set"),
        ("https://user:p/a?s#s@host/set", "https://host/set"),
        ("https://user:p@ss@host/set", "https://host/set"),
        ("https://token@host:80/set", "https://host:80/set"),
        ("http://u:p@[::1]:80/a", "http://[::1]:80/a"),
        (
            "https://b.s3.amazonaws.com/x?X-Amz-Credential=AKIA%2F1&X-Amz-Signature=ab12",
            "https://b.s3.amazonaws.com/x?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("https://host/set?sv=1&sig=a=b", "https://host/set?sv=***&sig=***"),
        ("https://host/set?bare-secret", "https://host/set?***"),
        ("https://host/set#access_token=1", "https://host/set#***"),
        ("HTTPS://u:p@host/set", "HTTPS://host/set"),
        ("https://host?a=b/c@d#e/f", "https://host?a=***"),
        ("https://host/a?b#c/d:e@f", "https://host/a?***"),
    ],
)
def test_urls_without_credentials(url, expected):
    assert without_credentials(url) == (expected or url)


def test_credentials_in_other_text():
    url = "https://me:pass%2Fphrase@host/set?token=abcd%3D&n=1"
    text = "401, url='https://host/set?token=abcd=', login pass/phrase or pass%2Fphrase, n=1"
    assert hide_in(text, url) == "401, url='https://host/set?token=***', login *** or ***, n=1"


@pytest.mark.parametrize(
    ("url", "text", "expected"),
    [
        ("https://abcd:efgh@host/", "abcd efgh abcd:efgh", "*** *** ***"),
        ("https://abc:efg@host/", "abc efg but abc:efg", "abc efg but ***"),  # shorter ones may be parts of words
        ("https://long-secret:long@host/", "long-secret", "***"),  # the longest first
        ("https://a:b:cdef@host/", "b:cdef a:b:cdef", "*** ***"),  # a password may have a colon
        ("https://host/x?bare-secret&n=1", "bare-secret", "***"),
        ("https://host/x?a=tokena&b=tokenb#frag-ment", "tokena tokenb frag-ment", "*** *** ***"),
        ("https://host/x?a=b=cdef", "b=cdef", "***"),
        ("https://abcd@@host/x", "abcd@", "***@"),
        ("https://user@xyz:pass-word@host:80/x", "user@xyz pass-word", "*** ***"),
    ],
)
def test_each_kind_of_secret_is_hidden(url, text, expected):
    assert hide_in(text, url) == expected


URLS = ["s3://me:pass-phrase@bucket/set", f"https://me:pass-phrase@host/set?token={TOKEN}"]


@pytest.mark.parametrize("url", URLS)
def test_a_store_prints_itself_without_credentials(url):
    store = locate(url)
    assert store == Store(url)
    assert pickle.loads(pickle.dumps(store)).url == url
    shown = [f"{one} {one!r} {one.name}" for one in (store, store / "shard-000000.tar")]
    shown += [f"{Remote(store)} {Remote(store)!r} {Remote(store).display_name('x.tar')}"]
    assert not [secret for secret in SECRETS for text in shown if secret in text]
    assert store.name == "set"


def test_the_query_stays_at_the_end():
    store = locate("https://host/set/?token=a/")
    assert (store / "train" / "a b.tar").url == "https://host/set/train/a%20b.tar?token=a/"
    assert (store / "train").name == "train"


@pytest.mark.parametrize(
    "text", ["htps://me:pass-phrase@host/x", "pipe://me:pass-phrase@x", "s3://me:pass-phrase@b::x"]
)
def test_refused_urls_are_shown_without_credentials(text):
    with pytest.raises(ConfigError, match="is not a supported shard location") as raised:
        locate(text)
    assert "pass-phrase" not in str(raised.value)


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """A directory, and its URL on a server that requires a login and a token."""
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)
    with guarded_server(tmp_path, login=LOGIN, token=TOKEN) as port:
        yield tmp_path, f"http://{{login}}@127.0.0.1:{port}?token={{token}}"


def test_credentials_reach_the_server(guarded):
    directory, url = guarded
    directory.joinpath("sub").mkdir()
    directory.joinpath("sub", "a.bin").write_bytes(bytes(1000))
    store = open_store(url.format(login=LOGIN, token=TOKEN)) / "sub"
    assert store.read("a.bin") == b"".join(store.pieces("a.bin", 1000)) == bytes(1000)
    assert store.exists("a.bin")
    assert not store.exists("b.bin")


@pytest.mark.parametrize("call", ["read", "exists", "files", "write"])
def test_errors_and_warnings_are_without_credentials(guarded, caplog, call):
    """Wrong credentials: the library's own error may contain the URL."""
    _, url = guarded
    caplog.set_level("INFO")
    store = open_store(url.format(login="me:pass-phrase", token="wrong-token"))
    arguments = {"files": [], "write": ["a.bin", b""]}.get(call, ["a.bin"])
    with pytest.raises(FastDPSError) as raised:
        getattr(store, call)(*arguments)
    text = "".join(traceback.format_exception(raised.value)) + caplog.text
    assert "127.0.0.1" in text
    assert "pass-phrase" not in text
    assert "wrong-token" not in text


def test_a_bucket_with_a_login(bucket, caplog, monkeypatch):
    """s3fs takes it as part of the bucket's name, and says so in its error."""
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.0001)
    caplog.set_level("INFO")
    store = open_store(bucket.replace("s3://", "s3://KEY-ID:SEC/RET-KEY@") + "/set")
    with pytest.raises(FastDPSError) as raised:
        store.read("manifest.json")
    text = "".join(traceback.format_exception(raised.value)) + caplog.text
    assert f"{bucket}/set/manifest.json" in text
    assert not [secret for secret in ("KEY-ID", "SEC/RET-KEY", "RET-KEY") if secret in text]
