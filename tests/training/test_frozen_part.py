"""The frozen part of a step, from images and a plan to moments: what a CUDA graph needs, held on the CPU.

No value goes to the host, no tensor comes from there, and no shape depends on data.
"""

import pytest
import torch
from torch import Tensor

from bench.harness.kernels import count
from fastdps.contexts.crops import crop, draw_crops
from fastdps.contexts.distortions import DISTORTIONS, DistortionPlan, draw_plan, make_views, to_float
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric

INTERPOLATIONS = ("nearest", "bilinear", "mixed")


def frozen_part(metric: PerceptualMetric, interpolation: str):
    def compute(images: Tensor, values: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor]:
        plan = DistortionPlan(DISTORTIONS, values, nearest)
        return tuple(metric.moments(make_views(to_float(images), plan, interpolation)))

    return compute


def inputs(n: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    images = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan = draw_plan(torch.arange(n), seed=0, epoch=0)
    return tuple(part.to(device) for part in (images, plan.values, plan.nearest))


@pytest.fixture(scope="module")
def metric() -> PerceptualMetric:
    return PerceptualMetric(Backbone("alexnet", pretrained=False, seed=0))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_it_needs_nothing_of_the_host(interpolation):
    on_meta = PerceptualMetric(Backbone("alexnet", pretrained=False)).to("meta")
    compute, given = frozen_part(on_meta, interpolation), inputs(4, "meta")
    counted = count(lambda: compute(*given))
    assert counted.host_copies == []
    assert counted.kernels["convolution"] == 5
    assert counted.launches < 400  # docs/design.md says what they cost


def test_crops_need_nothing_of_the_host():
    plan = draw_crops(torch.arange(4), seed=0, epoch=0).to("meta")
    counted = count(lambda: crop(torch.empty(4, 3, 48, 48, device="meta"), plan, 32))
    assert counted.host_copies == []


def whole_graph(metric: PerceptualMetric, interpolation: str) -> None:
    compute = frozen_part(metric, interpolation)
    compiled = torch.compile(compute, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        for ours, theirs in zip(compiled(*inputs(3)), compute(*inputs(3)), strict=True):
            assert torch.equal(ours, theirs)


def test_it_is_one_graph(metric):
    whole_graph(metric, "nearest")


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", INTERPOLATIONS[1:])
def test_it_is_one_graph_with_other_interpolations(metric, interpolation):
    whole_graph(metric, interpolation)


def test_what_a_graph_cannot_have_is_found():
    with pytest.raises((NotImplementedError, RuntimeError), match=r"meta|item"):
        count(lambda: torch.ones(3, device="meta").sum().item())
    x = torch.empty(2, 3, device="meta")
    assert count(lambda: x.index_select(0, torch.tensor([0, 1])).add(1)).host_copies
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        count(lambda: x[x > 0])


def test_kernels_and_bytes_of_known_operations():
    x = torch.empty(10, 4, device="meta")
    counted = count(lambda: ((x + 1).T.reshape(40) @ torch.empty(40, device="meta")).expand(7) * 2)
    assert dict(counted.kernels) == {"add": 1, "clone": 1, "dot": 1, "mul": 1}
    # Read and write 40 floats twice, read 80 and write one, read one and write seven.
    assert counted.bytes == 4 * (80 + 80 + 81 + 8)
    assert count(lambda: x.add_(1)).bytes == 4 * 80
