"""Heads: a training step of K contexts on given moments. Limit: the matrix products in it.

Baselines of many contexts: a loop over a `ModuleDict`, and `vmap` over stacked modules.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.harness.bench import BATCH, Bench
from bench.harness.flops import Product, fastest, products
from bench.harness.head_loops import module_dict_step, vmap_step
from bench.harness.measure import Compared, Measurement, Workload, repeated
from bench.harness.parts import head_step
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import Moments
from fastdps.training.recipes import fast

CONTEXTS = (1, 24, 720)
MODULE_DICT, VMAP = "a loop over a ModuleDict", "vmap over stacked modules"


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure each number of contexts. Rates count images, with all their pairs."""
    channels = sum(Backbone(fast().backbone, pretrained=False).channels)
    generator = torch.Generator().manual_seed(0)
    mean, var = torch.rand(2, BATCH, len(NAMES), channels, generator=generator).to(bench.device)
    for k in CONTEXTS:
        multiply = {
            library: _products_of_a_step(product, mean, k) for library, product in products(bench.device).items()
        }
        usual = _usual_ways(mean, k) if k == CONTEXTS[-1] else {}
        rates = bench.timing.rates({"heads": repeated(head_step(Moments(mean, var), k), BATCH), **multiply, **usual})
        yield Measurement(
            "heads",
            f"{k} context{'s' if k > 1 else ''}",
            rates["heads"],
            limit=fastest("its matrix products", {name: rates[name] for name in multiply}),
            usual=Compared(MODULE_DICT, rates[MODULE_DICT]) if usual else None,
            notes={"batch_images": BATCH},
            headline=k != CONTEXTS[1],
        )
        for name in usual:
            yield Measurement("heads", f"{k} contexts, {name}", rates[name], notes={"batch_images": BATCH})


def _usual_ways(mean: Tensor, contexts: int) -> dict[str, Workload]:
    rankings = sample_rankings(contexts, NAMES, seed=0)
    steps = {MODULE_DICT: module_dict_step(mean, rankings), VMAP: vmap_step(mean, rankings)}
    return {name: repeated(step, len(mean)) for name, step in steps.items()}


def _products_of_a_step(product: Product, mean: Tensor, contexts: int) -> Workload:
    """Return the workload of the products of a step: of the mean, and with dropout of the variance, both ways."""
    moments = mean.flatten(0, 1)
    weights, distances = (torch.rand(contexts, n, device=mean.device) for n in reversed(moments.shape))
    forward, backward = product(moments, weights), product(distances, moments.T.contiguous())

    def step() -> None:
        with torch.inference_mode():
            for _ in ("mean", "var") if fast().dropout else ("mean",):
                forward()
                backward()

    return repeated(step, len(mean))
