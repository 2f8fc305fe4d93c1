"""A holdout of triplets: no image is in both splits, and nothing is lost where references have images of their own."""

import csv
import itertools
import random
from pathlib import Path

import pytest

from fastdps.commands.make_shards import make_shards
from fastdps.errors import ConfigError
from fastdps.packing.sources.triplets import Triplets
from fastdps.shards.format import read_manifest


def write(path: Path, rows: list[list[str]]) -> Triplets:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["ref", "p0", "p1", "judge"], *([*row, 1] for row in rows)])
    return Triplets(path)


def images(source) -> set[str]:
    return {row.cells[name].removeprefix("./") for row in source.items() for name in ("ref", "p0", "p1")}


def shared_rows(count: int = 40) -> list[list[str]]:
    dice = random.Random(0)
    return [dice.sample([f"{number}.png" for number in range(12)], 3) for _ in range(count)]


def own_rows() -> list[list[str]]:
    """Three judgements of each of ten references, whose images no other reference has."""
    return [
        [f"r{n}.png", f"{n}-{a}.png", f"{n}-{b}.png"] for n in range(10) for a, b in itertools.combinations("abc", 2)
    ]


@pytest.mark.parametrize("fraction", [0.3, 0.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_image_is_in_both_splits(tmp_path, fraction, seed):
    rows = shared_rows(200)
    rows[0][0] = "./" + rows[0][0]  # another spelling of the same file
    parts = write(tmp_path / "rows.csv", rows).hold_out(fraction, seed)
    train, val = parts["train"], parts["val"]
    assert not images(train) & images(val)
    kept = len(train.items()) + len(val.items())
    assert train.describe() == {"name": "triplets", "holdout_by": "image", "left_out_rows": 200 - kept}
    # Those that are left out have images of both sides.
    taken = {row.line for part in (train, val) for row in part.items()}
    for line, row in enumerate(rows, start=2):
        if line not in taken:
            held = {name.removeprefix("./") in images(val) for name in row}
            assert held == {True, False} or not set(row) <= images(train) | images(val)


def test_references_with_images_of_their_own_lose_nothing(tmp_path):
    parts = write(tmp_path / "rows.csv", own_rows()).hold_out(0.3, seed=0)
    train, val = parts["train"], parts["val"]
    assert (len(train.items()), len(val.items())) == (21, 9)
    assert not images(train) & images(val)
    assert val.describe() == {"name": "triplets", "holdout_by": "reference", "left_out_rows": 0}
    # One image that two references share, and images are divided.
    shared = [*own_rows(), ["r0.png", "1-a.png", "0-b.png"]]
    assert write(tmp_path / "rows.csv", shared).hold_out(0.3, seed=0)["val"].describe()["holdout_by"] == "image"


def test_a_split_without_triplets_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a holdout of 0.01 by image leaves val without triplets"):
        write(tmp_path / "rows.csv", shared_rows()).hold_out(0.01, seed=0)


def test_the_command_packs_and_counts(tmp_path, capsys):
    from PIL import Image

    rows = shared_rows()
    for name in {name for row in rows for name in row}:
        Image.new("RGB", (8, 8), (int(name.split(".")[0]) * 20, 0, 0)).save(tmp_path / name)
    write(tmp_path / "rows.csv", rows)
    argv = ["triplets", "--source", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "set"), "--size", "8"]
    assert make_shards([*argv, "--holdout", "0.5", "--workers", "2"]) == 0
    train, val = (read_manifest(tmp_path / "set" / split) for split in ("train", "val"))
    left_out = train.source["left_out_rows"]
    assert train.samples + val.samples + left_out == len(rows)
    printed = capsys.readouterr().out
    assert "held out by image: no image is in both splits" in printed
    assert f"{left_out} rows have images of both splits and are in neither" in printed
