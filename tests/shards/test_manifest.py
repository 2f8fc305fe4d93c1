"""The manifest: round trip, rejected content, and the division of a large set among processes."""

import gc
import hashlib
import json

import numpy as np
import pytest

from fastdps.errors import ShardError
from fastdps.loading.order import EpochOrder, part_of
from fastdps.shards.format import (
    COMPONENTS,
    MANIFEST,
    MAX_PIXELS,
    MAX_SHARD_BYTES,
    MAX_SHARD_SAMPLES,
    Manifest,
    Shard,
    component_extensions,
    read_manifest,
)
from helpers.shard_sets import raw_samples, write_set

RANKS = 512


def manifest(shards: int, samples: int = 5000) -> Manifest:
    every = tuple(
        Shard(f"shard-{number:06d}.tar", samples, 64_010_240, hashlib.sha256(str(number).encode()).hexdigest())
        for number in range(shards)
    )
    return Manifest("images", {"image": "bin"}, "raw", (64, 64), samples * shards, {"name": "made up"}, every)


@pytest.mark.slow
def test_100_000_shards_are_divided_over_512_ranks(tmp_path):
    """Check that every sample of every shard is read by exactly one process."""
    expected = manifest(100_000)
    (tmp_path / MANIFEST).write_text(expected.to_json())
    found = read_manifest(tmp_path)
    assert found == expected
    assert gc.isenabled()
    samples = [shard.samples for shard in found.shards]
    order = EpochOrder(samples, seed=1, epoch=2, shuffle=True)
    visits = np.array([v for rank in range(RANKS) for v in order.visits(part_of(found.samples, rank, RANKS))])
    shards, starts, stops, sizes = visits[np.lexsort((visits[:, 1], visits[:, 0]))].T
    assert (sizes == 5000).all()
    assert (np.unique(shards) == np.arange(100_000)).all()
    first = np.append(True, shards[1:] != shards[:-1])
    last = np.append(first[1:], True)
    assert (starts[first] == 0).all()
    assert (stops[last] == 5000).all()
    assert (starts[~first] == stops[~last]).all()
    assert len(visits) < 100_000 + RANKS  # two processes read a shard only at the ends of their parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../shard-000001.tar"}, "shard name '../shard-000001.tar' is not of the form"),
        ({"name": "pipe:curl"}, "shard name 'pipe:curl'"),
        ({"name": "shard-000001.tar\nshard-000002.tar"}, "is not of the form"),
        ({"name": 1}, "not a manifest of this format"),
        ({"colour": "red"}, r"unknown keys \['colour'\] of shard 1"),
        ({"samples": 4}, "the shards add up to 14"),
        ({"samples": "5"}, "not a manifest of this format"),
        ({"sha256": None, "DROP": "sha256"}, "sha256"),
    ],
)
def test_invalid_shards_are_rejected(tmp_path, change, message):
    content = json.loads(manifest(3, samples=5).to_json())
    content["shards"][1] |= change
    if dropped := content["shards"][1].pop("DROP", None):
        del content["shards"][1][dropped]
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ShardError, match=message):
        read_manifest(tmp_path)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "shard-000002.tar"}, "shard name shard-000002.tar is listed more than once"),
        ({"name": "shard-\N{FULLWIDTH DIGIT ONE}00000.tar"}, "is not of the form"),
        ({"name": f"shard-{'1' * 300}.tar"}, "is not of the form"),
        ({"name": 1.5}, "name of a shard is 1.5, not of the type str"),
        ({"samples": True}, "samples of a shard is True, not of the type int"),
        ({"samples": 5.0}, "samples of a shard is 5.0, not of the type int"),
        ({"samples": -5}, r"samples of shard-000001\.tar is -5, not within 0"),
        (
            {"samples": 10**9, "bytes": 10**14},
            r"samples of shard-000001\.tar is 1000000000, not within 0 and 10,000,000",
        ),
        ({"bytes": "64010240"}, "bytes of a shard is '64010240'"),
        ({"bytes": -1}, r"bytes of shard-000001\.tar is -1, and its 5 samples take at least 64,000"),
        ({"bytes": 63_999}, r"bytes of shard-000001\.tar is 63999"),
        ({"bytes": 10**16}, r"bytes of shard-000001\.tar is 10000000000000000"),
        ({"sha256": "0" * 63}, r"sha256 of shard-000001\.tar is '0+', not 64 hexadecimal digits"),
        ({"sha256": "0" * 63 + "g"}, "not 64 hexadecimal digits"),
        ({"sha256": "A" * 64}, "not 64 hexadecimal digits"),
        ({"sha256": 64}, "sha256 of a shard is 64, not of the type str"),
        ({"bytes": None, "DROP": "bytes"}, r"keys \['bytes'\] of shard 1 are missing"),
    ],
)
def test_each_value_of_a_shard_is_checked(tmp_path, change, message):
    test_invalid_shards_are_rejected(tmp_path, change, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": True}, "format version True"),
        ({"format_version": 1.0}, "format version 1.0"),
        ({"kind": ["images"]}, "unknown kind"),
        ({"encoding": 1}, "unknown encoding 1"),
        ({"components": ["image"]}, "components .* do not belong"),
        ({"components": {"image": "png"}}, "components .* do not belong"),
        ({"image_size": 64}, "image_size is 64"),
        ({"image_size": [64]}, "image_size is"),
        ({"image_size": [64, 64, 3]}, "image_size is"),
        ({"image_size": [64, 0]}, "image_size is"),
        ({"image_size": [-64, -64]}, "image_size is"),
        ({"image_size": [True, 64]}, "image_size is"),
        ({"image_size": [64.0, 64]}, "image_size is"),
        ({"image_size": "64"}, "image_size is"),
        ({"image_size": {"0": 64, "1": 64}}, "image_size is"),
        ({"image_size": [10**6, 10**6]}, "an image may have at most 89,478,485 pixels"),
        ({"image_size": [4000, 2000]}, "its 5 samples take at least 120,002,560"),
        ({"samples": 15.0}, "samples is 15.0, but the shards add up to 15"),
        ({"samples": "15"}, "samples is '15'"),
        ({"samples": 10**9}, "samples is 1000000000"),
        ({"source": 1}, "source is 1, not an object"),
        ({"source": []}, "source is "),
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
    ],
)
def test_each_value_of_a_manifest_is_checked(tmp_path, change, message):
    content = json.loads(manifest(3, samples=5).to_json()) | change
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(
        ShardError, match=rf"{tmp_path}/manifest\.json is not a manifest.*{message}.*pack again"
    ) as found:
        read_manifest(tmp_path)
    assert len(str(found.value)) < 500 + len(str(tmp_path))


def test_the_order_of_the_components_is_checked(tmp_path):
    content = json.loads(manifest(1, samples=5).to_json())
    components = {"same": "same.f32", "p0": "p0.bin", "p1": "p1.bin"}
    (tmp_path / MANIFEST).write_text(json.dumps(content | {"kind": "pairs", "components": components}))
    with pytest.raises(ShardError, match="do not belong to pairs as raw"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("key", ["kind", "components", "encoding", "image_size", "samples", "source", "shards"])
def test_a_missing_key_is_named(tmp_path, key):
    content = json.loads(manifest(3, samples=5).to_json())
    del content[key]
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ShardError, match=rf"keys \['{key}'\] are missing"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "null", "1", "", "NaN", "1" * 5000])
def test_text_that_is_not_an_object_is_rejected(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ShardError, match=r"manifest\.json (cannot be read as JSON|is not a manifest)"):
        read_manifest(tmp_path)
    assert gc.isenabled()


def test_collection_that_was_off_stays_off(tmp_path):
    (tmp_path / MANIFEST).write_text(manifest(1).to_json())
    gc.disable()
    try:
        read_manifest(tmp_path)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("shards", [None, 3, ["shard-000000.tar"], [["a", 1, 2, "b"]], {"shard-000000.tar": 1}])
def test_shards_that_are_not_a_list_are_rejected(tmp_path, shards):
    content = json.loads(manifest(3, samples=5).to_json()) | {"shards": shards}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ShardError, match="not a manifest of this format"):
        read_manifest(tmp_path)


def test_the_members_of_each_kind_of_set():
    """Names of the format, which must never change."""
    assert COMPONENTS == {
        "images": ("image",),
        "judgements": ("image",),
        "triplets": ("ref", "p0", "p1", "judge"),
        "pairs": ("p0", "p1", "same"),
    }
    image = {"raw": "bin", "jpeg": "jpg", "png": "png", "keep": "jpg;png"}
    for encoding, extensions in image.items():
        assert component_extensions("images", encoding) == {"image": extensions}
        for kind, scalar in (("triplets", "judge"), ("pairs", "same")):
            expected = {
                name: f"{name}.f32" if name == scalar else ";".join(f"{name}.{one}" for one in extensions.split(";"))
                for name in COMPONENTS[kind]
            }
            assert list(component_extensions(kind, encoding).items()) == list(expected.items())


def changed(tmp_path, *, shard=None, **changes):
    """Read the manifest of three shards of five samples with values changed."""
    content = json.loads(manifest(3, samples=5).to_json()) | changes
    content["shards"][1] |= shard or {}
    content["samples"] = sum(entry["samples"] for entry in content["shards"])
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    return read_manifest(tmp_path)


def test_the_limits_of_a_shard_are_inclusive(tmp_path):
    for samples, size in [(0, 0), (0, MAX_SHARD_BYTES), (MAX_SHARD_SAMPLES, MAX_SHARD_BYTES), (1, 12_800), (5, 64_000)]:
        found = changed(tmp_path, shard={"samples": samples, "bytes": size}).shards[1]
        assert (found.samples, found.bytes) == (samples, size)
    for samples, size, message in [
        (0, -1, "bytes of"),
        (0, MAX_SHARD_BYTES + 1, "bytes of"),
        (-1, 0, "samples of"),
        (MAX_SHARD_SAMPLES + 1, MAX_SHARD_BYTES, "samples of"),
        (1, 12_799, "bytes of"),
    ]:
        with pytest.raises(ShardError, match=message + r" shard-000001\.tar is"):
            changed(tmp_path, shard={"samples": samples, "bytes": size})


@pytest.mark.parametrize("size", [None, [1, 1], [1, MAX_PIXELS], [MAX_PIXELS, 1]])
def test_sizes_of_images_within_the_limits_are_read(tmp_path, size):
    components = component_extensions("images", "png")
    found = changed(tmp_path, image_size=size, encoding="png", components=components)
    assert found.image_size == (None if size is None else tuple(size))
    for height, width in ((1, MAX_PIXELS + 1), (MAX_PIXELS + 1, 1)):
        with pytest.raises(ShardError, match="an image may have at most"):
            changed(tmp_path, image_size=[height, width], encoding="png", components=components)


@pytest.mark.parametrize(("kind", "scalar"), [("triplets", "judge"), ("pairs", "same")])
def test_the_least_bytes_of_a_shard_are_those_of_its_members(tmp_path, kind, scalar):
    """A tar without its padding at the end is the smallest one."""
    names = [name for name in COMPONENTS[kind] if name != scalar]
    image = raw_samples(1, 30, 40)[0]["bin"]
    members = {**{f"{name}.bin": image for name in names}, f"{scalar}.f32": bytes(4)}
    directory = write_set(tmp_path / "set", [members] * 3, [3], kind=kind, image_size=(30, 40))
    least = 3 * sum(512 + -(-len(data) // 512) * 512 for data in members.values())
    content = json.loads((directory / MANIFEST).read_text())
    for size, is_refused in ((least, False), (least - 1, True)):
        content["shards"][0]["bytes"] = size
        (directory / MANIFEST).write_text(json.dumps(content))
        if is_refused:
            with pytest.raises(ShardError, match=f"its 3 samples take at least {least:,}"):
                read_manifest(directory)
        else:
            assert read_manifest(directory).shards[0].bytes == least


def test_the_text_of_a_manifest_is_readable(tmp_path):
    text = Manifest("images", {"image": "bin"}, "raw", (64, 64), 0, {"name": "\N{SNOWMAN}"}, ()).to_json()
    assert '"name": "\N{SNOWMAN}"' in text
    assert text.startswith('{\n "format_version": 2,\n "kind": "images",\n')
    assert text.endswith("}\n")
