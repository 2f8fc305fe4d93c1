"""Mutated shard sets, from fixed seeds: each reader ends soon with a named error, or reads what is still sound.

Each set is read by both loaders, staged from a web server, checked and listed, in a process of its own.

Tar, index and manifest of small sets are mutated: flipped bits, truncations, fields of tar headers, tokens of indexes,
values of manifests. Where a manifest states checksums and sizes, half of the mutated tars have theirs corrected, as a
malicious writer would. Bytes within an image that still decode are not an error of loading: only a checksum finds them,
and then `check` must report the set.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastdps.errors import FastDPSError
from fastdps.packing.sources.tars import TarImages
from fastdps.packing.verify import check_set
from fastdps.shards import storage
from fastdps.shards.cache import Cache
from fastdps.shards.format import read_manifest
from fastdps.shards.index import index_of
from helpers.damaged_tars import NEGATIVE, SIZE, with_field
from helpers.isolated import FINE, NAMED, Case, attack, expect
from helpers.packed import encoded, photo
from helpers.servers import web_server
from helpers.shard_sets import described, open_set, raw_samples, write_set

HAS_DALI = importlib.util.find_spec("nvidia") is not None
if HAS_DALI:
    import fastdps.loading.dali  # noqa: F401  # by the server, once for all cases

#: Mutated sets; `make attacks` raises it.
SETS = 60 * int(os.environ.get("FASTDPS_ATTACKS", "1"))
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


def mutate(directory: Path, draw: random.Random) -> tuple[str, bool]:
    """Mutate a file of a set; return the mutation's name, and True if the manifest was adapted to it."""
    suffix = draw.choice(list(MUTATIONS))
    path = draw.choice(sorted(directory.glob(f"*.{suffix}")))
    mutation = draw.choice(MUTATIONS[suffix])
    path.write_bytes(mutation(path.read_bytes(), draw))
    is_adapted = suffix == "tar" and draw.random() < 0.5
    if is_adapted:
        manifest = json.loads((directory / "manifest.json").read_text())
        number = [shard["name"] for shard in manifest["shards"]].index(path.name)
        manifest["shards"][number] = described(path, SIZES[number])
        (directory / "manifest.json").write_text(json.dumps(manifest))
    return f"{mutation.__name__} of {path.name}", is_adapted


Samples = dict[int, list[torch.Tensor]]


def read_all_indexes(directory: Path) -> None:
    for tar in sorted(directory.glob("*.tar")):
        with tar.open("rb") as file:
            index_of(file.fileno(), tar)


def load(location: Path | str, **options: object) -> Samples:
    """Return the components of each sample, by its id; two epochs must give the same."""
    epochs: list[Samples] = []
    for epoch in (0, 1):
        samples: Samples = {}
        for batch in open_set(location, batch_size=4, num_threads=1, **options).epoch(epoch):
            for number, sample_id in enumerate(batch.ids.tolist()):
                expect(sample_id not in samples, f"sample {sample_id} comes twice")
                samples[sample_id] = [component[number].clone() for component in batch.components.values()]
        epochs.append(samples)
    expect(is_same(*epochs), "two epochs have other samples")
    return epochs[0]


def is_same(one: Samples, other: Samples) -> bool:
    return one.keys() == other.keys() and all(
        all(map(torch.equal, components, other[sample_id])) for sample_id, components in one.items()
    )


def check(directory: Path) -> None:
    """Check a set. A problem counts as a named error."""
    if problems := list(check_set(directory)):
        raise FastDPSError("; ".join(map(str, problems)))


def list_source(directory: Path) -> None:
    for tar in sorted(directory.glob("*.tar")):
        TarImages(tar, "attacked").items()


def compare(loaded: dict[str, Samples], original: Samples, directory: Path, is_adapted: bool) -> None:
    """The loaders agree; what differs from the original set is found by `check`."""
    found = list(loaded.values())
    expect(all(is_same(found[0], other) for other in found[1:]), f"{', '.join(loaded)} load other samples")
    if found and not is_adapted and not is_same(found[0], original):
        expect(list(check_set(directory)), "samples have changed, and check finds no problem")


#: The servers of a case, which end with its process.
_SERVERS = contextlib.ExitStack()


def make_set(seed: str, directory: Path) -> Case:
    storage.FIRST_PAUSE_S = 0.001  # between attempts to read a tar that is too short
    kind = seed.partition(" ")[0]
    source = write_source(directory / "source", kind)
    original = load(source, loader="portable")
    attacked = directory / "set"
    shutil.copytree(source, attacked)
    draw = random.Random(seed)
    what, is_adapted = mutate(attacked, draw) if "sound" not in seed else ("no mutation", False)
    url = f"http://127.0.0.1:{_SERVERS.enter_context(web_server(attacked))}"
    cache = Cache(directory / "cache", 1 << 30)
    loaded: dict[str, Samples] = {}

    def loading(name: str, location: Path | str, **options: object) -> Callable[[], object]:
        return lambda: loaded.__setitem__(name, load(location, **options))

    readings: dict[str, Callable[[], object]] = {
        "indexes": lambda: read_all_indexes(attacked),
        "manifest": lambda: read_manifest(attacked),
        "portable": loading("portable", attacked, loader="portable"),
        "staged": loading("staged", url, loader="portable", cache=cache),
        "staged again": loading("staged again", url, loader="portable", cache=cache),
        "check": lambda: check(attacked),
        "list": lambda: list_source(attacked),
    }
    if HAS_DALI:
        readings["dali"] = loading("dali", attacked, loader="dali", device="cpu")
    readings["compare"] = lambda: compare(loaded, original, attacked, is_adapted)
    return Case(what, (str(attacked), url, str(cache.directory)), readings)


@pytest.mark.parametrize("kind", ["raw", "png", "triplets"])
def test_mutated_sets_are_named_errors_or_read(capfd, kind):
    with capfd.disabled():
        counts = attack(__file__, "make_set", [f"{kind} {number}" for number in range(SETS // 3)])
    assert counts[NAMED] > counts[FINE] / 4  # the mutations do reach the readers


def test_sound_sets_are_read_by_all(capfd):
    counts = attack(__file__, "make_set", ["raw sound", "png sound", "triplets sound"])
    assert counts.keys() <= {FINE, NAMED}
    assert counts[NAMED] == 2  # tars without images are no source
