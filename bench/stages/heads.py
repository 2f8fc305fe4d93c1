"""Heads: a training step of K contexts on given moments. Limit: the matrix products in it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.harness.bench import BATCH, Bench
from bench.harness.flops import Product, fastest, products
from bench.harness.measure import Measurement, Workload, repeated
from bench.harness.parts import head_step
from fastdps.contexts.distortions import NAMES
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import Moments
from fastdps.training.recipes import fast

CONTEXTS = (1, 24, 720)


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure each number of contexts. Rates count images, with all their pairs."""
    channels = sum(Backbone(fast().backbone, pretrained=False).channels)
    generator = torch.Generator().manual_seed(0)
    mean, var = torch.rand(2, BATCH, len(NAMES), channels, generator=generator).to(bench.device)
    for k in CONTEXTS:
        multiply = {
            library: _products_of_a_step(product, mean, k) for library, product in products(bench.device).items()
        }
        rates = bench.timing.rates({"heads": repeated(head_step(Moments(mean, var), k), BATCH), **multiply})
        yield Measurement(
            "heads",
            f"{k} context{'s' if k > 1 else ''}",
            rates["heads"],
            limit=fastest("its matrix products", {name: rates[name] for name in multiply}),
            triplets_per_image=k * len(NAMES) * (len(NAMES) - 1) // 2,
            notes={"batch_images": BATCH},
            headline=k != CONTEXTS[1],
        )


def _products_of_a_step(product: Product, mean: Tensor, contexts: int) -> Workload:
    """Return the workload of the four products of a step: for mean and variance, one forward and one backward."""
    moments = mean.flatten(0, 1)
    weights, distances = (torch.rand(contexts, n, device=mean.device) for n in reversed(moments.shape))
    forward, backward = product(moments, weights), product(distances, moments.T.contiguous())

    def step() -> None:
        with torch.inference_mode():
            for _ in ("mean", "var"):
                forward()
                backward()

    return repeated(step, len(mean))
