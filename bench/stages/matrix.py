"""Distances of all pairs of some images: `m.matrix`, against calls of the `lpips` package for each pair."""

from __future__ import annotations

import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness.bench import Bench
from bench.harness.measure import Compared, Measurement, repeated
from fastdps.errors import FastDPSError
from fastdps.loading.loader import open_shards
from fastdps.metric.backbones import Backbone
from fastdps.metric.image_metric import RANK_BATCH, ImageMetric
from fastdps.metric.lpips_format import heads_from_lpips
from fastdps.metric.perceptual import PerceptualMetric

#: What `m.matrix` is promised for.
IMAGES = 200
PAIRS = IMAGES * (IMAGES - 1) // 2
#: Pairs of one call of LPIPS where pairs are compared in batches.
BATCH = 50
#: How far the distances of both may be apart: with TF32, in which GPUs convolve, and without.
AGREEMENT, AGREEMENT_TF32 = 1e-5, 1e-2


@torch.no_grad()
def run(bench: Bench) -> Iterator[Measurement]:
    """Images/s of 200 images' matrix. LPIPS is given some of the 19,900 pairs, and its time is scaled to all."""
    images = _images(bench)
    metric, oracle = _metrics(bench.device)
    units = images.float() / 255
    near = itertools.cycle(itertools.combinations(range(IMAGES), 2))

    def pair_calls(batch: int) -> Callable[[], object]:
        def call() -> object:
            first, second = zip(*itertools.islice(near, batch), strict=True)
            return oracle(units[list(first)], units[list(second)], normalize=True)

        return call

    _check_agreement(metric, oracle, images, units)
    rates = bench.timing.rates(
        {
            "matrix": repeated(lambda: metric.matrix(images), IMAGES),
            # A pair is 1 / 99.5 of what an image costs: 200 images have 19,900.
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
    """Images (n, 3, 64, 64) uint8, different ones where there are as many."""
    with closing(open_shards(bench.data.small("raw", IMAGES), batch_size=IMAGES).epoch(0)) as batches:
        images = next(batches).images
    return images.permute(0, 3, 1, 2).to(bench.device)


def _metrics(device: torch.device) -> tuple[ImageMetric, Any]:
    """LPIPS as it is shipped, on AlexNet, by us and by its own package."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision and torch.load in ways that are deprecated
        oracle = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    backbone = Backbone("alexnet")
    keys = {key.split(".", 1)[1]: key for key in oracle.net.state_dict()}
    oracle.net.load_state_dict({keys[key.removeprefix("features.")]: w for key, w in backbone.state_dict().items()})
    heads = heads_from_lpips(Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth")
    return ImageMetric(PerceptualMetric(backbone, heads).to(device)), oracle.to(device)


def _check_agreement(metric: ImageMetric, oracle: Any, images: Tensor, units: Tensor) -> None:
    """Raise `FastDPSError` unless both measure the same for the first image and all others."""
    ours, theirs = metric.matrix(images)[0], oracle(units[:1].expand_as(units), units, normalize=True).flatten()
    exact = images.device.type == "cpu" or not torch.backends.cudnn.allow_tf32
    if (difference := (ours - theirs).abs().max().item()) > (AGREEMENT if exact else AGREEMENT_TF32):
        raise FastDPSError(f"m.matrix and lpips differ by {difference:.1e}: what is timed is not the same.")
