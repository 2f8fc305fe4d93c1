"""Mutated tables of triplets (CSV and JSONL), from fixed seeds, through packing: what is packed is what was listed."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from fastdps.packing.verify import check_set
from helpers.isolated import NAMED, Case, attack, expect
from helpers.mutations import DEEP, ODD, mutated, mutated_json
from helpers.packed import encoded, photo, read_set

#: Mutated tables; `make attacks` raises it.
TABLES = 75 * int(os.environ.get("FASTDPS_ATTACKS", "1"))
COLUMNS = ("ref", "p0", "p1", "judge")
IMAGES = [encoded(photo(8, 8, number), "PNG") for number in range(6)]
VOTES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
CELLS = [
    "",
    "nan",
    "inf",
    "-0.2",
    "1.2",
    "1e400",
    "0x1",
    "1_0",
    "٣",
    "0,5",
    " 0.5 ",
    "../outside.png",
    "/dev/zero",
    ".",
]
CELLS += ["link.png", "fifo", "missing.png", "sub", "\0", "a" * 5000, '"', "=1+1", "\ufeff", "0.png\n", "C:\\x.png"]
LINES = [
    "",
    "\r",
    "\0",
    '"',
    ",,,",
    "ref,p0,p1,judge",
    "{}",
    "[]",
    "null",
    DEEP,
    "{" * 50,
    '{"ref": 1, "ref": 2}',
    "\ufeff",
]


def row_of(number: int) -> dict[str, str | float]:
    names = [f"{(number + place) % 6}.png" for place in range(3)]
    return dict(zip(COLUMNS, [*names, VOTES[number]], strict=True))


def make_table(seed: int, directory: Path) -> Case:
    draw = random.Random(f"tables {seed}")
    source = directory / "in"
    source.mkdir()
    for number, data in enumerate(IMAGES):
        (source / f"{number}.png").write_bytes(data)
    (directory / "outside.png").write_bytes(IMAGES[0])
    (source / "sub").mkdir()
    (source / "link.png").symlink_to("/dev/zero")
    os.mkfifo(source / "fifo")
    suffix = draw.choice([".csv", ".jsonl"])
    rows = [row_of(number) for number in range(6)]
    kind = draw.choice(["bytes", "bytes", "cell", "cell", "line", "row"])
    how = kind
    if kind == "cell":
        cell = draw.choice([*CELLS, *ODD]) if suffix == ".jsonl" else draw.choice(CELLS)
        column = draw.choice(COLUMNS)
        rows[draw.randrange(6)][column] = cell
        how = f"{column} = {cell!r}"[:60]
    if kind == "row" and suffix == ".jsonl":
        rows = [mutated_json(rows, draw)][0]
    lines = [",".join(COLUMNS)] if suffix == ".csv" else []
    lines += [
        ",".join(str(cell) for cell in row.values()) if suffix == ".csv" else json.dumps(row)
        for row in (rows if isinstance(rows, list) else [rows])
        if suffix == ".jsonl" or isinstance(row, dict)
    ]
    if kind == "line":
        lines[draw.randrange(len(lines))] = draw.choice(LINES)
    elif kind == "row" and suffix == ".csv":
        number = draw.randrange(len(lines))
        lines[number] = draw.choice([f"{lines[number]},", lines[number].rpartition(",")[0], lines[0], lines[-1] * 2])
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    if kind == "bytes":
        how, content = mutated(content, draw)
    table = source / f"table{suffix}"
    table.write_bytes(content)
    readings: dict[str, Callable[[], object]] = {
        "list": lambda: open_source("triplets", table).items(),
        "pack": lambda: pack_and_compare(table, directory / "strict", max_rejects=0.0),
        "pack with rejects": lambda: pack_and_compare(table, directory / "tolerant", max_rejects=1.0),
    }
    return Case(f"{suffix}, {how}", (str(directory),), readings)


def pack_and_compare(table: Path, out: Path, *, max_rejects: float) -> None:
    """Pack the table: the set is sound, and each sample has an image of each column and a share of votes."""
    pack(
        open_source("triplets", table),
        out,
        PackOptions(encoding="png", size=8, max_rejects=max_rejects),
        workers=1,
    )
    (shards,) = {path.parent for path in out.rglob("manifest.json")}
    problems = list(check_set(shards))
    expect(not problems, f"the packed set has problems: {problems}")
    samples = read_set(shards)
    if not max_rejects:
        expect(len(samples) == len(open_source("triplets", table).items()), f"{len(samples)} samples")
    for members in samples.values():
        share = struct.unpack("<f", members["judge.f32"])[0]
        expect(0 <= share <= 1, f"a vote of {share}")
        expect(set(members) == {"ref.png", "p0.png", "p1.png", "judge.f32"}, f"members {sorted(members)}")


def test_mutated_tables_are_named_errors_or_packed_as_listed(capfd):
    with capfd.disabled():
        counts = attack(__file__, "make_table", range(TABLES))
    assert counts[NAMED] > TABLES / 2


def test_the_sound_table_is_packed(tmp_path):
    for name in ("table.csv", "table.jsonl"):
        source = tmp_path / name / "in"
        source.mkdir(parents=True)
        for number, data in enumerate(IMAGES):
            (source / f"{number}.png").write_bytes(data)
        rows = [row_of(number) for number in range(6)]
        is_csv = name.endswith(".csv")
        lines = [",".join(COLUMNS)] * is_csv
        lines += [",".join(map(str, row.values())) if is_csv else json.dumps(row) for row in rows]
        (source / name).write_text("\n".join(lines))
        pack_and_compare(source / name, tmp_path / name / "out", max_rejects=0.0)
