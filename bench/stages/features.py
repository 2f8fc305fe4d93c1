"""Features: seven views through each backbone. Limit: one large matrix product with as many operations."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness.bench import BATCH, Bench
from bench.harness.flops import count_flops, fastest, large_products
from bench.harness.measure import Measurement
from bench.harness.parts import StepParts

#: The measured backbones, and their batch sizes on a CPU, where a full batch of the larger one would take seconds.
CPU_BATCHES = {"alexnet": BATCH, "vgg16": 5, "timm/tf_efficientnet_lite0": BATCH}


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure each backbone, or only the first if quick. Rates count images of seven views each."""
    shards = bench.data.small("raw")
    for name, cpu_batch in list(CPU_BATCHES.items())[: 1 if bench.quick else None]:
        parts = StepParts(bench, shards, name, BATCH if bench.on_gpu else cpu_batch)
        flops = count_flops(parts.backbone, parts.views) / len(parts.batch)
        multiply = large_products(bench.device)
        rates = bench.timing.rates({"features": parts.features(), **multiply})
        yield Measurement(
            "features",
            name,
            rates["features"],
            limit=fastest("a matrix product", {library: rates[library] for library in multiply}, per_item=flops),
            notes={"GFLOP_per_image": flops / 1e9, "batch_images": len(parts.batch)},
        )
