"""Mutated shard sets, from fixed seeds: each reader ends soon with a named error, or reads what is still sound.

Tar, index and manifest of small sets are mutated: flipped bits, truncations, fields of tar headers, tokens of indexes,
values of manifests. Where a manifest states checksums and sizes, half of the mutated tars have theirs corrected, as a
malicious writer would. Bytes within an image that still decode are not an error: only a checksum finds them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import struct
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdps.errors import FastDPSError
from fastdps.packing.sources.tars import TarImages
from fastdps.packing.verify import check_set
from fastdps.shards.format import read_manifest
from fastdps.shards.index import index_of
from helpers.damaged_tars import NEGATIVE, SIZE, TimeLimitExceeded, time_limit, with_field
from helpers.packed import encoded, photo
from helpers.shard_sets import described, open_set, raw_samples, write_set

#: Mutated sets; `make attacks` raises it.
SETS = 400 * int(os.environ.get("FASTDPS_ATTACKS", "1"))
LIMIT_S = 5.0
LIMIT_BYTES = 2 << 30  # of address space, above what the process has
SIZES = (5, 4)

#: Fields of a tar header, and values that they get, the ones for sizes first.
FIELDS = [slice(0, 100), slice(100, 108), slice(124, 136), slice(136, 148), slice(148, 156), slice(156, 157)]
FIELDS += [slice(157, 257), slice(257, 265), slice(345, 500)]
TEXTS = [NEGATIVE, b"-0000001000", b"", b"77777777777", b"00000000000", b"\x80" + b"\xff" * 11, b"99999999999", b"1_0"]
TEXTS += [b"../../x", b"000000001.bin", b"000000009.bin", b"x" * 100, b"0", b"1", b"2", b"5", b"L", b"K", b"x", b"g"]
TEXTS += [b"S", b"X", b"\xff\xfe", b"000000000.\xff", "\N{FULLWIDTH DIGIT ONE}.bin".encode()]
NUMBERS = [
    "-1",
    "0",
    "512",
    "513",
    "-512",
    "99999999999999999999",
    "9223372036854775296",
    "1e3",
    "1_0",
    "",
    "x",
    "\x00",
]
VALUES = [
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    10**9,
    10**30,
    2**63,
    1.5,
    float("nan"),
    "",
    "x",
    "../x",
    [],
    [1],
    {},
    {"a": 1},
]
VALUES += ["0" * 64, "shard-000001.tar", [64, 64], [0, 0], [10**6, 10**6], "\ud800", "[" * 50]


def write_source(directory, kind: str):
    if kind == "raw":
        return write_set(directory, raw_samples(sum(SIZES)), SIZES)
    if kind == "png":
        samples = [{"png": encoded(photo(6, 4, seed), "PNG")} for seed in range(sum(SIZES))]
        return write_set(directory, samples, SIZES, encoding="png")
    samples = [
        {
            **{f"{name}.bin": raw_samples(1, seed=n)[0]["bin"] for name in ("ref", "p0", "p1")},
            "judge.f32": b"\0\0\0\x3f",
        }
        for n in range(sum(SIZES))
    ]
    return write_set(directory, samples, SIZES, kind="triplets")


def flip_bits(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 3, 20])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.choice([draw.randrange(len(data)), draw.randrange(len(data)) // 512 * 512])]


def extend(data: bytes, draw: random.Random) -> bytes:
    return data + draw.randbytes(draw.choice([1, 512, 5000]))


def change_header(data: bytes, draw: random.Random) -> bytes:
    """Change a field of a header, with a valid checksum."""
    at = draw.choice([0, draw.randrange(4) * 1024])
    field = draw.choice([SIZE, draw.choice(FIELDS)])
    value = draw.choice(TEXTS[:8] if field == SIZE else TEXTS)
    return with_field(data, at, field, value[: field.stop - field.start])


def insert_header(data: bytes, draw: random.Random) -> bytes:
    """Insert headers that change the next one."""
    header = tarfile.TarInfo("x")
    header.type = draw.choice([tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
    content = draw.choice(
        [b"14 size=-1024\n", b"12 size=x12\n", b"0 a=b\n", b"9" * 512, b"", b"30 GNU.sparse.map=1,2\n"]
    )
    header.size = len(content)
    at = draw.randrange(4) * 1024
    block = header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    return data[:at] + block * draw.choice([1, 1, 2, 1500]) + data[at:]


def change_token(data: bytes, draw: random.Random) -> bytes:
    tokens = data.decode().split(" ")
    number = draw.randrange(len(tokens))
    tokens[number] = draw.choice([*NUMBERS, tokens[draw.randrange(len(tokens))]])
    return " ".join(tokens).encode()


def change_line(data: bytes, draw: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    number = draw.randrange(len(lines))
    lines[number : number + 1] = draw.choice([[], [lines[number]] * 2, [draw.choice(lines)], [b"\n"]])
    return b"".join(lines)


def change_value(data: bytes, draw: random.Random) -> bytes:
    content = json.loads(data)
    owner = draw.choice([content, *content["shards"], *content["shards"], content["components"]])
    key = draw.choice([*owner, "colour"])
    if draw.random() < 0.15:
        owner.pop(key, None)
    else:
        owner[key] = draw.choice([*VALUES, *json.loads(data).values()])
    return json.dumps(content).encode()


MUTATIONS: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
    "tar": [flip_bits, cut, extend, change_header, change_header, insert_header],
    "idx": [flip_bits, cut, extend, change_token, change_token, change_line],
    "json": [flip_bits, cut, extend, change_value, change_value, change_value],
}


def mutate(directory, draw: random.Random) -> str:
    """Mutate a file of a set; return the mutation's name."""
    suffix = draw.choice(list(MUTATIONS))
    path = draw.choice(sorted(directory.glob(f"*.{suffix}")))
    mutation = draw.choice(MUTATIONS[suffix])
    path.write_bytes(mutation(path.read_bytes(), draw))
    if suffix == "tar" and draw.random() < 0.5:
        manifest = json.loads((directory / "manifest.json").read_text())
        number = [shard["name"] for shard in manifest["shards"]].index(path.name)
        manifest["shards"][number] = described(path, SIZES[number])
        (directory / "manifest.json").write_text(json.dumps(manifest))
    return f"{mutation.__name__} of {path.name}"


def read_all_indexes(directory) -> None:
    for tar in sorted(directory.glob("*.tar")):
        with tar.open("rb") as file:
            index_of(file.fileno(), tar)


def load(directory) -> None:
    for epoch in (0, 1):
        for _ in open_set(directory, batch_size=4, loader="portable", num_threads=1).epoch(epoch):
            pass


def check(directory) -> None:
    """Check a set. A problem counts as a named error."""
    if problems := list(check_set(directory)):
        raise FastDPSError("; ".join(map(str, problems)))


def list_source(directory) -> None:
    for tar in sorted(directory.glob("*.tar")):
        TarImages(tar, "attacked").items()


READERS = [read_all_indexes, read_manifest, load, check, list_source]


@contextlib.contextmanager
def memory_limit():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(reader: Callable, directory) -> str:
    try:
        with time_limit(LIMIT_S):
            reader(directory)
    except FastDPSError as error:
        return "named errors" if str(directory) in str(error) else f"names no file: {error}"
    except TimeLimitExceeded:
        return "hung"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    return "fine"


@pytest.mark.parametrize("kind", ["raw", "png", "triplets"])
def test_mutated_sets_are_named_errors_or_read(tmp_path, kind, capsys):
    source = write_source(tmp_path / "source", kind)
    for reader in READERS:
        if not (reader is list_source and kind != "png"):
            assert outcome(reader, source) == "fine", reader.__name__
    directory = tmp_path / "set"
    counts: Counter[str] = Counter()
    wrong = []
    with memory_limit():
        for seed in range(SETS // 3):
            draw = random.Random(f"{kind} {seed}")
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(source, directory)
            mutation = mutate(directory, draw)
            for reader in READERS:
                found = outcome(reader, directory)
                counts[found.partition(":")[0]] += 1
                if found not in ("fine", "named errors"):
                    wrong.append(f"seed {seed}, {mutation}, {reader.__name__}: {found}")
    with capsys.disabled():
        print(f"\n{kind}: {SETS // 3} mutated sets: {dict(counts)}")
    assert wrong == []
    assert counts["named errors"] > counts["fine"] / 4  # the mutations do reach the readers


def test_an_attack_that_a_reader_does_not_withstand_is_counted(tmp_path):
    def hang(_):
        while True:
            pass

    def fail(_):
        return struct.unpack("<f", b"")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "LIMIT_S", 0.05)
        assert outcome(hang, tmp_path) == "hung"
    assert outcome(fail, tmp_path).startswith("traceback: error")
