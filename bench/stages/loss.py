"""A metric as a loss: a step to the gradient of one of two images. Baseline: the `lpips` package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness.bench import Bench
from bench.harness.lpips_oracle import both_lpips, check_agreement
from bench.harness.measure import Compared, Measurement, Workload, repeated
from fastdps.loading.loader import open_shards

#: The metrics, with the number of images of a batch, and the side of the images in pixels.
CASES, SIZE = {"lpips": 16, "lpips/vgg": 4}, 128
QUICK_CASES = ("lpips",)

#: A function of two batches of images that returns distances.
Loss = Callable[[Tensor, Tensor], Tensor]


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure images/s of forward and backward pass, and the memory that the graph keeps in between."""
    for name in QUICK_CASES if bench.quick else CASES:
        yield _measure(bench, name, CASES[name])


def _measure(bench: Bench, name: str, batch: int) -> Measurement:
    metric, oracle = both_lpips(name, bench.device)
    output, target = _images(bench, batch)
    backbone = metric.metric.backbone

    def of_lpips(x: Tensor, y: Tensor) -> Tensor:
        return oracle(x, y, normalize=True).flatten()

    def features(x: Tensor, y: Tensor) -> Tensor:
        backbone(y)
        return torch.stack([part.mean() for part in backbone(x)])

    def steps(loss: Loss) -> Workload:
        return repeated(lambda: _step(loss, output, target), batch)

    check_agreement(metric(output, target), of_lpips(output, target), f"{name} as a loss")
    rates = bench.timing.rates({"ours": steps(metric), "lpips": steps(of_lpips), "features": steps(features)})
    return Measurement(
        "loss",
        f"forward and backward, {backbone.name}, {batch} images of {SIZE} px",
        rates["ours"],
        limit=Compared("its backbone alone", rates["features"]),
        usual=Compared("the lpips package", rates["lpips"]),
        notes={
            "kept_for_backward_MiB": _kept_MiB(metric, output, target, metric),
            "kept_by_lpips_MiB": _kept_MiB(of_lpips, output, target, oracle),
        },
    )


def _images(bench: Bench, batch: int) -> tuple[Tensor, Tensor]:
    """Return a batch of images in [0, 1] and the same images blurred, (batch, 3, SIZE, SIZE)."""
    with closing(open_shards(bench.data.small("raw", batch), batch_size=batch).epoch(0)) as batches:
        images = next(batches).images.permute(0, 3, 1, 2).to(bench.device).float() / 255
    target = F.interpolate(images, (SIZE, SIZE), mode="bilinear")
    output = F.interpolate(F.avg_pool2d(images, 2), (SIZE, SIZE), mode="bilinear")
    return output, target


def _step(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """Return the gradient of the mean loss with respect to the output."""
    leaf = output.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, target).mean(), leaf)
    return gradient


def _kept_MiB(loss: Loss, output: Tensor, target: Tensor, module: nn.Module) -> float:  # noqa: N802, the unit
    """Return the size of what autograd keeps between forward and backward pass beside the weights, in MiB."""
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        distances = loss(output.detach().requires_grad_(), target)
    assert distances.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in own) / 2**20
