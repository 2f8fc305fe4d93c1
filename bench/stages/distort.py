"""Distortions: each one, and all six including the draw. Limit: writing as many pixels. Baseline: torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bench.harness.bench import Bench
from bench.harness.measure import Compared, Measurement, repeated
from bench.harness.parts import StepParts
from bench.harness.reference import draw_and_distort
from fastdps.contexts.distortions import DISTORTIONS, apply_plan, draw_plan, to_float

#: Images of a call of the per-sample baseline.
FEW = 5


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure all six at once and, unless quick, each one."""
    batch = StepParts(bench, bench.data.small("raw")).batch
    images = to_float(batch.images)
    singles = list(images[:FEW].cpu())
    variants = {"all six, drawn and applied": dict(DISTORTIONS)}
    if not bench.quick:
        variants |= {name: {name: distortion} for name, distortion in DISTORTIONS.items()}
    for what, distortions in variants.items():
        target = images.new_empty(len(images), len(distortions), *images.shape[1:])
        plan = draw_plan(batch.ids, seed=0, epoch=0, distortions=distortions).to(bench.device)
        ours = (
            partial(_draw_and_apply, batch.ids, images) if len(distortions) > 1 else partial(apply_plan, images, plan)
        )
        write = partial(target.copy_, images[:, None])
        with torch.inference_mode():
            rates = bench.timing.rates(
                {
                    "ours": repeated(ours, len(images)),
                    "write": repeated(write, len(images)),
                    "per sample": repeated(partial(_per_sample, list(distortions), singles), len(singles)),
                }
            )
        yield Measurement(
            "distort",
            what,
            rates["ours"],
            limit=Compared("a copy of as many pixels", rates["write"]),
            usual=Compared("torchvision, image by image", rates["per sample"]),
            notes={"batch_images": len(images)},
            headline=len(distortions) > 1,
        )


def _draw_and_apply(ids: Tensor, images: Tensor) -> Tensor:
    return apply_plan(images, draw_plan(ids, seed=0, epoch=0).to(images.device))


def _per_sample(names: list[str], images: list[Tensor]) -> None:
    for image in images:
        for name in names:
            draw_and_distort(name, image)
