"""Adapting to few judgements. Baseline: the same fit on the pretrained backbone.

560 images --train--> one backbone, shared by 648 contexts     N judgements in one of 72 others --fit--> head
140 others ---------------------------------------------------------------------------------------> accuracy of the head

A judgement compares two distorted versions of a training image, drawn at random. $FASTDPS_BENCH_SHARED names a finished
run on the same images to use instead of training one; then the 72 contexts may be among its own.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.harness.bench import Bench
from bench.harness.data import SIZE, EvenSelection
from bench.harness.measure import Compared, Measurement, Timed
from fastdps.contexts.distortions import NAMES, draw_plan, make_views, to_float
from fastdps.contexts.rankings import Ranking, all_rankings, labels
from fastdps.contexts.rankings import pairs as all_pairs
from fastdps.evaluation.tally import EVALUATION_SEED
from fastdps.loading.loader import open_shards
from fastdps.metric.perceptual import frozen_moments
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.packing.sources.folder import Folder
from fastdps.training.answers import Answers
from fastdps.training.bases import Base, open_base
from fastdps.training.differences import Differences
from fastdps.training.dual_newton import Array
from fastdps.training.few_shot import fit_differences
from fastdps.training.run import train

#: Names a finished run to use as the base.
RUN_VARIABLE = "FASTDPS_BENCH_SHARED"
#: Every tenth of all contexts is not trained on.
EVERY = 10
#: Images, the side in pixels at which they are packed for crops, and the share that is held out.
IMAGES, PACKED, HOLDOUT = 700, 96, 0.2
COUNTS, QUICK_COUNTS = (10, 20, 50, 100, 200), (20, 100)
#: Draws of the distortions of each image.
DRAWS, QUICK_DRAWS = 5, 1
#: Epochs and images of a quick run.
QUICK_EPOCHS, QUICK_IMAGES, QUICK_CONTEXTS = 1, 60, 6
#: Judgements of a fit whose speed is measured.
TIMED = 100


@dataclass(frozen=True)
class DistortedPairs:
    """Moments of images and their distorted versions.

    Attributes:
        moments: (images, draws, 6, C).
    """

    moments: Array

    def differences(self, image: NDArray[np.int64], draw: NDArray[np.int64], pair: NDArray[np.int64]) -> Array:
        """Return m_a - m_b of pairs of distorted versions, (n, C)."""
        first, second = all_pairs(len(NAMES)).numpy()[pair].T
        return np.asarray(self.moments[image, draw, first] - self.moments[image, draw, second])


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure the fits, and compare the accuracies of two bases."""
    contexts = all_rankings(NAMES)[::EVERY]
    counts, draws = (QUICK_COUNTS, QUICK_DRAWS) if bench.quick else (COUNTS, DRAWS)
    if bench.quick:
        contexts = contexts[:: len(contexts) // QUICK_CONTEXTS]
    with tempfile.TemporaryDirectory() as place:
        images = _pack(bench, Path(place))
        shared = _shared(bench, images / "train", Path(place) / "run")
        bases = {"shared": open_base(shared), "alexnet": open_base("alexnet")}
        notes: dict[str, float] = {}
        fits: dict[str, Callable[[int], Timed]] = {}
        for name, base in bases.items():
            seen, unseen = (_moments(base, images / split, draws, seed) for split, seed in _SPLITS)
            notes |= {f"{name}_{key}": value for key, value in measure(base, seen, unseen, contexts, counts).items()}
            fits[name] = _timed_fit(base, seen, contexts[0])
    rates = bench.timing.rates(fits)
    yield Measurement(
        "fewshot",
        f"a head from {TIMED} judgements, and its accuracy to expect",
        rates["shared"],
        unit="triplets/s",
        usual=Compared("the same on the pretrained backbone", rates["alexnet"]),
        notes=notes,
    )


_SPLITS = (("train", 0), ("val", EVALUATION_SEED))


def measure(
    base: Base, seen: DistortedPairs, unseen: DistortedPairs, contexts: Sequence[Ranking], counts: Sequence[int]
) -> dict[str, float]:
    """Return the mean accuracy over contexts by number of judgements, and how far below the base a context ends.

    Args:
        base: The base.
        seen: The images that are judged.
        unseen: Other images.
        contexts: The contexts.
        counts: Numbers of judgements.

    Returns:
        "base_accuracy"; "N_accuracy" and "N_worst_change" for each N: the least change of the accuracy of a context.
    """
    closer = labels(contexts, NAMES).numpy()  # (pairs, K)
    grid = np.indices((*unseen.moments.shape[:2], len(closer))).reshape(3, -1)
    tests = unseen.differences(*grid)
    logits = tests @ base.priors[0].array
    before = [_accuracy(logits, closer[grid[2], k]) for k in range(len(contexts))]
    found = {"base_accuracy": float(np.mean(before))}
    for count in counts:
        after = []
        for k in range(len(contexts)):
            data = _judge(seen, closer[:, k], count, seed=k)
            weights = fit_differences(data, base.priors, seed=k).weights[0].double().numpy()
            after.append(_accuracy(tests @ weights, closer[grid[2], k]))
        found[f"{count}_accuracy"] = float(np.mean(after))
        found[f"{count}_worst_change"] = float(np.min(np.subtract(after, before)))
    return found


def _accuracy(logits: Array, share: Array) -> float:
    return float(((logits > 0) == (share > 0.5)).mean())


def _judge(seen: DistortedPairs, closer: Array, count: int, seed: int) -> Differences:
    """Return judgements of random pairs of distorted versions of random images."""
    random = np.random.default_rng(seed)
    images, draws = seen.moments.shape[:2]
    image = random.choice(images, count, replace=count > images)
    draw, pair = random.integers(draws, size=count), random.integers(len(closer), size=count)
    versions = images + 2 * np.arange(count)
    triplets = np.stack([image, versions, versions + 1], axis=1)
    return Differences(Answers.of(triplets, closer[pair]).judged(), seen.differences(image, draw, pair))


def _timed_fit(base: Base, seen: DistortedPairs, context: Ranking) -> Callable[[int], Timed]:
    """Return a workload: fits, with cross-validation, from moments."""
    data = _judge(seen, labels([context], NAMES).numpy()[:, 0], TIMED, seed=0)

    def fit(amount: int) -> Timed:
        start_s = time.perf_counter()
        for _ in range(amount):
            fit_differences(data, base.priors)
        return Timed(float(amount * TIMED), time.perf_counter() - start_s)

    return fit


def _pack(bench: Bench, place: Path) -> Path:
    """Pack the images at the size for crops, a fifth of them held out; return the directory of both sets."""
    count = QUICK_IMAGES if bench.quick else min(bench.data.images, IMAGES)
    photos = bench.data.photos
    source = EvenSelection(Folder(photos), count) if photos else DeadLeaves(count, PACKED, seed=0)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        pack(source, place / "set", PackOptions(size=PACKED, encoding="raw", holdout=HOLDOUT), workers=1)
    return place / "set"


def _shared(bench: Bench, shards: Path, out: Path) -> Path:
    """Return a run with a backbone that is shared by all contexts but those that are measured."""
    if given := os.environ.get(RUN_VARIABLE):
        return Path(given)
    trained = [ranking for number, ranking in enumerate(all_rankings(NAMES)) if number % EVERY]
    settings: dict[str, Any] = {"epochs": QUICK_EPOCHS, "batch_size": 16} if bench.quick else {}
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        train(shards, out, contexts=trained, config="shared", **settings)
    return out


@torch.no_grad()
def _moments(base: Base, shards: Path, draws: int, seed: int) -> DistortedPairs:
    """Return the moments of all images of a set and some draws of their distorted versions."""
    parts: list[Tensor] = []
    for draw in range(draws):
        with closing(open_shards(shards, batch_size=50, size=SIZE, seed=None).epoch(0)) as batches:
            for batch in batches:
                views = make_views(to_float(batch.images), draw_plan(batch.ids, seed=seed, epoch=draw))
                parts.append(frozen_moments(base.metric, views).mean)
    moments = torch.cat(parts).double().cpu().numpy()
    return DistortedPairs(moments.reshape(draws, -1, *moments.shape[1:]).swapaxes(0, 1))
