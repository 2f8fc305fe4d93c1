"""Judgement sets of generated images, with judges whose notion of similarity is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastdps.contexts.judgements import JudgedPairs
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.judgements import JudgementFile
from fastdps.training.pair_moments import PairMoments
from helpers.judgement_files import HEADER, write_csv
from helpers.packed import encoded, photo

SIDE = 32


def write_judged(root: Path, rows: int, images: int, seed: int = 0) -> Path:
    """Write images and judgements of three people: by mean brightness, by mean colour, and at random.

    People judge by what a random backbone can see, so that a metric can learn it.
    """
    rng = np.random.default_rng(seed)
    pixels = [photo(SIDE, SIDE, seed=number + 1000 * seed) for number in range(images)]
    (root / "images").mkdir(parents=True)
    for number, one in enumerate(pixels):
        (root / f"images/{number:03d}.png").write_bytes(encoded(one, "PNG"))
    means = np.stack([one.mean(axis=(0, 1)) for one in pixels])
    sight = {"bright": means.mean(axis=1, keepdims=True), "colour": means - means.mean(axis=1, keepdims=True)}
    table = []
    for number in range(rows):
        person = ("bright", "colour", "random")[number % 3]
        ref, a, b = rng.choice(images, 3, replace=False)
        share = float(rng.integers(2))
        if person in sight:
            seen = sight[person]
            share = float(np.linalg.norm(seen[ref] - seen[b]) < np.linalg.norm(seen[ref] - seen[a]))
        table.append([*(f"images/{image:03d}.png" for image in (ref, a, b)), share, 1 + number % 2, person])
    return write_csv(root / "judged.csv", table, HEADER)


def packed_judged(root: Path, rows: int = 600, images: int = 24, *, holdout: float = 0.0) -> Path:
    """Pack such judgements by person, a holdout by row, and return the directory of the sets."""
    file = write_judged(root / "source", rows, images)
    pack(
        JudgementFile(file, by="person", holdout_by="row"),
        root / "set",
        PackOptions(size=SIDE, holdout=holdout),
        workers=1,
    )
    return root / "set"


class GivenMoments(PairMoments):
    """Moments that are given, in blocks of a few pairs."""

    def __init__(self, mean: Tensor, block: int = 50) -> None:
        self.shape = (mean.shape[0], mean.shape[1])
        self._mean, self._rows = mean, block
        self.place, self.images = "memory", 0

    def blocks(self):
        for which in np.array_split(np.arange(len(self)), max(1, len(self) // self._rows)):
            yield which, self._mean[torch.from_numpy(which)]


def planted(
    weights: Mapping[str, Tensor], rows: int, images: int, *, noise: float = 0.0, seed: int = 0
) -> tuple[JudgedPairs, GivenMoments]:
    """Return judgements by metrics with known weights, of random vectors that stand for images.

    Args:
        weights: Channel weights (C,) of each judge.
        rows: Number of judgements of each judge.
        images: Number of images.
        noise: Share of the judgements that are reversed.
        seed: Seed of everything.
    """
    rng = np.random.default_rng(seed)
    channels = len(next(iter(weights.values())))
    vectors = torch.from_numpy(rng.standard_normal((images, channels)) * np.geomspace(1, 0.1, channels)).float()
    pairs = np.stack(np.triu_indices(images, 1), axis=1)
    mean = (vectors[pairs[:, 0]] - vectors[pairs[:, 1]]).square()
    index = {tuple(pair): number for number, pair in enumerate(pairs.tolist())}
    chosen = np.stack([rng.choice(images, 3, replace=False) for _ in range(rows * len(weights))])
    first, second = (
        np.array([index[tuple(sorted((row[0], row[other])))] for row in chosen.tolist()]) for other in (1, 2)
    )
    judge = np.repeat(np.arange(len(weights)), rows)
    d = torch.stack([mean @ w for w in weights.values()], dim=1).numpy()
    is_b = d[first, judge] > d[second, judge]
    is_b ^= rng.random(len(is_b)) < noise
    return (
        JudgedPairs(
            np.arange(images),
            pairs,
            chosen,
            first,
            second,
            (~is_b).astype(float),
            is_b.astype(float),
            judge,
            tuple(weights),
        ),
        GivenMoments(mean),
    )
