"""Distances of all pairs of images: `m.matrix`. Baseline: a call of the `lpips` package per pair."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor

from bench.harness.bench import Bench
from bench.harness.lpips_oracle import both_lpips, check_agreement
from bench.harness.measure import Compared, Measurement, repeated
from fastdps.loading.loader import open_shards
from fastdps.metric.image_metric import RANK_BATCH

#: The number of images for which the speed of `m.matrix` is stated.
IMAGES = 200
PAIRS = IMAGES * (IMAGES - 1) // 2
#: Pairs of one call of LPIPS when pairs are compared in batches.
BATCH = 50


@torch.no_grad()
def run(bench: Bench) -> Iterator[Measurement]:
    """Measure images/s of a matrix of 200 images. LPIPS gets some of the 19,900 pairs; its time is scaled to all."""
    images = _images(bench)
    metric, oracle = both_lpips("lpips", bench.device)
    units = images.float() / 255
    near = itertools.cycle(itertools.combinations(range(IMAGES), 2))

    def pair_calls(batch: int) -> Callable[[], object]:
        def call() -> object:
            first, second = zip(*itertools.islice(near, batch), strict=True)
            return oracle(units[list(first)], units[list(second)], normalize=True)

        return call

    check_agreement(
        metric.matrix(images)[0], oracle(units[:1].expand_as(units), units, normalize=True).flatten(), "m.matrix"
    )
    rates = bench.timing.rates(
        {
            "matrix": repeated(lambda: metric.matrix(images), IMAGES),
            # A pair counts as 1 / 99.5 of an image, since 200 images have 19,900 pairs.
            "pair by pair": repeated(pair_calls(1), IMAGES / PAIRS),
            "batches": repeated(pair_calls(BATCH), BATCH * IMAGES / PAIRS),
            "features": repeated(lambda: [metric.metric.backbone(part) for part in units.split(RANK_BATCH)], IMAGES),
        }
    )
    ratios = [own / other for own, other in zip(rates["matrix"], rates["batches"], strict=True)]
    yield Measurement(
        "matrix",
        f"all pairs of {IMAGES} images, alexnet",
        rates["matrix"],
        limit=Compared("features alone", rates["features"]),
        usual=Compared("lpips, pair by pair", rates["pair by pair"]),
        notes={f"of_lpips_in_batches_of_{BATCH}_ratio": statistics.median(ratios), "pairs_of_all_images": PAIRS},
    )


def _images(bench: Bench) -> Tensor:
    """Return images (n, 3, 64, 64), uint8, distinct if there are enough."""
    with closing(open_shards(bench.data.small("raw", IMAGES), batch_size=IMAGES).epoch(0)) as batches:
        images = next(batches).images
    return images.permute(0, 3, 1, 2).to(bench.device)
