"""A metric as a loss: gradients as those of LPIPS, a small network that learns, and what trainings do with it."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import fastdps
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import COMPARISONS, compared_channels
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.perceptual import PerceptualMetric
from helpers.loss_of_ranks import Autoencoder, gradients, images
from helpers.lpips_oracle import lpips_oracle
from helpers.warm_python import launch_warm


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def loss(weights_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        return fastdps.load("lpips")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(distances, x: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(distances.mean(), x)
    return found


X, Y = noise(2, 3, 3, 64, 56)


def is_near(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize("which", [0, 1])
def test_the_gradient_of_one_image_is_that_of_lpips(loss, which, weights_dir):
    oracle = lpips_oracle("alex", load_file(weights_dir / "alexnet_features.safetensors"))
    pair = [X, Y]
    pair[which] = free = pair[which].clone().requires_grad_()
    ours, theirs = loss(*pair), oracle(*pair, normalize=True).flatten()
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=0)
    assert is_near(gradient(ours, free), gradient(theirs, free))
    assert loss(X, Y).grad_fn is None
    assert all(parameter.grad is None for parameter in loss.parameters())


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_a_fixed_image_changes_neither_distances_nor_gradients(comparison):
    channels = sum(compared_channels((64, 192), comparison))
    metric = PerceptualMetric(Backbone("alexnet", taps=(1, 4)), noise(1, channels), comparison=comparison)
    m, x = ImageMetric(metric), X.clone().requires_grad_()
    fixed, free = m(x, Y), m(x, Y.clone().requires_grad_())
    assert torch.allclose(fixed, free, atol=1e-6)
    assert is_near(gradient(fixed, x), gradient(free, x))
    if "spatial" in comparison:
        maps, others = m(x, Y, spatial=True), m(x, Y.clone().requires_grad_(), spatial=True)
        assert torch.allclose(maps, others, atol=1e-5)
        assert is_near(gradient(maps, x), gradient(others, x))


def kept_bytes(loss, x: torch.Tensor, y: torch.Tensor) -> int:
    """The size of the tensors that autograd keeps for the backward pass, without the weights and copies of them."""
    kept, own = {}, {tensor.numel() for tensor in loss.state_dict().values()}

    def keep(tensor):
        if tensor.numel() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss(x, y)
    assert result.requires_grad
    return sum(kept.values())


def test_nothing_is_kept_of_the_backbone_on_a_fixed_image(loss):
    x, y = (image.clone().requires_grad_() for image in (X, Y))
    assert kept_bytes(loss, x, Y) < 0.75 * kept_bytes(loss, x, y)


@pytest.fixture(scope="module")
def photographs(imagenet_sample):
    return fastdps.read_images(sorted(imagenet_sample.rglob("*.JPEG"))[:8], size=48).float() / 255


class Upscaler(nn.Module):
    """Twice the resolution: bilinear, and a correction of three layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 12, 3, padding=1), nn.PixelShuffle(2)
        )

    def forward(self, small):
        return (F.interpolate(small, scale_factor=2, mode="bilinear") + self.layers(small)).clamp(0, 1)


def test_a_small_network_learns(loss, photographs):
    """Super-resolution that is perceptually nearer to the photographs than bilinear interpolation."""
    network, small = Upscaler(), F.avg_pool2d(photographs, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    with torch.no_grad():
        before = loss(F.interpolate(small, scale_factor=2, mode="bilinear"), photographs).mean().item()
    for step in range(16):
        part = slice(step % 2 * 4, step % 2 * 4 + 4)
        optimizer.zero_grad()
        loss(network(small[part]), photographs[part]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert loss(network(small), photographs).mean().item() < 0.9 * before


def test_autocast_has_nearly_the_same_gradient(loss):
    x = X.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(x, Y)
    full = loss(x, Y)
    assert half.dtype == torch.float32
    assert torch.allclose(half, full, rtol=0.02)
    assert F.cosine_similarity(gradient(half, x).flatten(), gradient(full, x).flatten(), dim=0) > 0.95


def test_copies_and_pickles_are_the_same_loss(loss):
    x = X.clone().requires_grad_()
    expected = loss(x, Y)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(x, Y), expected)
        assert torch.equal(gradient(other(x, Y), x), gradient(loss(x, Y), x))
        assert not set(map(id, other.parameters())) & set(map(id, loss.parameters()))


@pytest.mark.slow
def test_it_compiles_without_a_break_of_the_graph(loss):
    x = X.clone().requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, Y), loss(x, Y), atol=1e-6)
    assert is_near(gradient(compiled(x, Y), x), gradient(loss(x, Y), x))


@pytest.mark.slow
def test_two_ranks_have_the_gradient_of_one_process(tmp_path):
    script = Path(__file__).parents[1] / "helpers" / "loss_of_ranks.py"
    for done in launch_warm(2, script, tmp_path):
        assert done.returncode == 0, done.stderr
    expected = gradients(Autoencoder(), images(4))
    assert len(expected) == 4
    for rank in range(2):
        for ours, one in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert is_near(ours, one)
