"""Judgement files for tests, and the tables of a set read only with pyarrow and `csv`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from helpers.packed import Pixels, encoded, noise

HEADER = ("ref", "p0", "p1", "judge", "votes", "person")


def write_images(root: Path, count: int, side: int = 8) -> dict[str, Pixels]:
    """Write PNGs of noise to a sub-folder. Return their pixels by relative path."""
    made = {f"images/{number:03d}.png": noise(side, side, 3, seed=number) for number in range(count)}
    (root / "images").mkdir(parents=True, exist_ok=True)
    for name, pixels in made.items():
        (root / name).write_bytes(encoded(pixels, "PNG"))
    return made


def random_rows(count: int, images: int, seed: int = 0) -> list[list[str]]:
    """Return rows of `HEADER` about random images, judged by three persons."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        names = [f"images/{number:03d}.png" for number in rng.choice(images, 3, replace=False)]
        votes = int(rng.integers(1, 6))
        share = rng.integers(0, votes + 1) / votes
        rows.append([*names, str(share), str(votes), f"person-{rng.integers(3)}"])
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = HEADER) -> Path:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def names_of(directory: Path) -> dict[int, str]:
    """Return the names of the samples of a set."""
    table = pq.read_table(directory / "samples.parquet").to_pydict()
    return dict(zip(table["id"], table["name"], strict=True))


def judgements_of(directory: Path) -> list[dict[str, Any]]:
    """Return the judgements of a set, with names in place of sample ids."""
    names = names_of(directory)
    rows = pq.read_table(directory / "judgements.parquet").to_pylist()
    return [{**row, **{role: names[row[role]] for role in ("ref", "a", "b")}} for row in rows]


def expected_of(path: Path, by: str | None = None) -> dict[int, dict[str, Any]]:
    """Return the judgements of a CSV file by line, by a plain loop."""
    with path.open(newline="", encoding="utf-8") as file:
        found = {}
        for number, row in enumerate(csv.DictReader(file), start=2):
            votes = float(row.get("votes", 1))
            found[number] = {
                "ref": row["ref"],
                "a": row["p0"],
                "b": row["p1"],
                "votes_a": votes * (1 - float(row["judge"])),
                "votes_b": votes * float(row["judge"]),
                "judge": row[by] if by else None,
                "row": number,
            }
        return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare two judgements; votes may differ by rounding."""
    votes = ("votes_a", "votes_b")
    assert {k: v for k, v in found.items() if k not in votes} == {k: v for k, v in expected.items() if k not in votes}
    np.testing.assert_allclose([found[k] for k in votes], [expected[k] for k in votes], rtol=0, atol=1e-12)
