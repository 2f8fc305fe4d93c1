"""`ImageMetric` against the `lpips` package."""

import doctest
import importlib
import subprocess
import sys

import lpips
import pytest
import torch
from safetensors.torch import load_file

import fastdps
from fastdps.errors import ConfigError, ImageError
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import COMPARISONS, compared_channels
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.image_sizes import smallest_side
from fastdps.metric.perceptual import PerceptualMetric
from helpers.lpips_oracle import lpips_oracle

NETS = [("alex", "alexnet"), ("vgg", "vgg16")]


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


def heads_of(oracle: lpips.LPIPS) -> torch.Tensor:
    return torch.cat([lin.model[1].weight.flatten() for lin in oracle.lins])[None]


def both(net, backbone, weights_dir, **options) -> tuple[lpips.LPIPS, ImageMetric]:
    oracle = lpips_oracle(net, load_file(weights_dir / f"{backbone}_features.safetensors"), **options)
    return oracle, ImageMetric(PerceptualMetric(Backbone(backbone), heads_of(oracle)))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def random_metric(comparison="spatial", seed=0) -> ImageMetric:
    channels = sum(compared_channels((64, 192, 384, 256, 256), comparison))
    return ImageMetric(PerceptualMetric(Backbone("alexnet"), noise(1, channels, seed=seed), comparison=comparison))


@pytest.mark.parametrize(("net", "backbone"), NETS)
def test_distances_layers_and_gradients_as_in_lpips(net, backbone, weights_dir):
    oracle, m = both(net, backbone, weights_dir)
    x, y = noise(2, 3, 3, 64, 80).requires_grad_()
    expected, layers = oracle(x, y, normalize=True, retPerLayer=True)
    distances, ours = m(x, y, per_layer=True)
    assert torch.allclose(distances, expected.flatten(), atol=1e-5, rtol=0)
    assert torch.allclose(m(x, y), expected.flatten(), atol=1e-5, rtol=0)
    assert torch.allclose(ours, torch.stack([layer.flatten() for layer in layers], dim=1), atol=1e-5, rtol=0)
    for output, other in ((m(x, y), expected), (ours[:, 2], layers[2])):
        gradients, theirs = (torch.autograd.grad(d.sum(), (x, y), retain_graph=True) for d in (output, other))
        for mine, gradient in zip(gradients, theirs, strict=True):
            assert torch.allclose(mine, gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-3)


@pytest.mark.parametrize(("net", "backbone"), NETS)
@torch.no_grad()
def test_maps_as_in_lpips(net, backbone, weights_dir):
    oracle, m = both(net, backbone, weights_dir, spatial=True)
    x, y = noise(2, 2, 3, 65, 97)
    expected, layers = oracle(x, y, normalize=True, retPerLayer=True)
    distances, ours = m(x, y, spatial=True, per_layer=True)
    assert distances.shape == (2, 65, 97)
    assert torch.allclose(distances, expected[:, 0], atol=1e-5, rtol=0)
    assert torch.equal(m(x, y, spatial=True), distances)
    assert torch.allclose(ours, torch.cat(layers, dim=1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_maps_of_two_kinds_add_up_to_the_distance():
    m = random_metric("spatial+sort")
    x, y = noise(2, 2, 3, 64, 64)
    distances, layers = m(x, y, per_layer=True)
    _, maps = m(x, y, per_layer=True, spatial=True)
    assert layers.shape == (2, 10)
    assert maps.shape == (2, 10, 64, 64)
    assert torch.allclose(layers.sum(dim=1), distances)
    assert torch.allclose(maps[:, 5:].mean(dim=(2, 3)), layers[:, 5:], rtol=1e-4)
    assert (maps[:, 5:].amax(dim=(2, 3)) - maps[:, 5:].amin(dim=(2, 3)) < 1e-6).all()
    with pytest.raises(ConfigError, match="compares by sort, which does not tell where"):
        random_metric("sort")(x, y, spatial=True)


@pytest.mark.parametrize("comparison", COMPARISONS)
@torch.no_grad()
def test_every_form_of_images_means_the_same(comparison):
    m = random_metric(comparison)
    x, y = (noise(2, 4, 3, 64, 64) * 255).to(torch.uint8)
    floats = x.float() / 255, y.float() / 255
    expected = m.metric(*floats)[:, 0]
    assert expected.shape == (4,)
    for a, b in ((x, y), floats, (x, floats[1]), (list(x), list(y)), (x.double() / 255, floats[1])):
        assert torch.allclose(m(a, b), expected, atol=1e-6)
    assert torch.allclose(m(x[0], y[0]), expected[:1], atol=1e-5)
    for a, b in ((x[0], y), (y, x[0])):
        assert torch.allclose(m(a, b), m(x[:1].expand_as(y), y), atol=1e-5)


@torch.no_grad()
def test_rank_against_sorted_distances():
    m = random_metric()
    ref, candidates = noise(3, 64, 64), noise(70, 3, 64, 64, seed=1)  # more than are compared at a time
    candidates[40] = candidates[7]
    indices, distances = m.rank(ref, candidates)
    expected = torch.cat([m(ref, one) for one in candidates])
    assert torch.allclose(distances, expected.sort().values, atol=1e-5)
    assert sorted(indices.tolist()) == list(range(70))
    assert torch.allclose(expected[indices], distances, atol=1e-5)
    assert m.rank(candidates[3], candidates).indices[0] == 3
    assert m.rank(ref, list(candidates)).indices.tolist() == indices.tolist()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(2, 3, 64, 64) * 255, r"from 0.\d+ to 25\d.*; float images are in \[0, 1\]\. For .* x / 255"),
        (noise(2, 3, 64, 64) * 2 - 1, r"as `lpips` takes them, pass \(x \+ 1\) / 2"),
        (noise(2, 3, 64, 64) * 9 - 4, r"undo it; .* x\.clamp\(0, 1\)"),
        (torch.full((2, 3, 64, 64), torch.nan), r"x has NaN values in 2 of 2 images\. Fix or remove"),
        (noise(2, 64, 64, 3), r"channels are last: pass x\.movedim\(-1, -3\)"),
        (noise(64, 64, 3), r"\(64, 64, 3\); .*channels are last"),
        (noise(2, 1, 64, 64), r"greyscale images pass x\.expand\(-1, 3, -1, -1\)"),
        (noise(4, 64, 64), r"drop it: x\[:3\]"),
        (noise(2, 4, 64, 64), r"drop it: x\[:, :3\]"),
        (noise(2, 5, 64, 64), "Pass RGB images"),
        (noise(64, 64), r"has shape \(64, 64\); images are"),
        (torch.zeros(0, 3, 64, 64), "it holds no image"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.int64), r"torch.int64; .* x\.to\(torch\.uint8\)"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.bool), r"torch.bool"),
        (noise(2, 3, 64, 64).numpy(), r"x: an array has shape \(3, 64, 64\).*transpose\(1, 2, 0\)"),
        ([], "not no image"),
        ([noise(3, 64, 64), noise(3, 64, 65)], r"x\[1\] is 64 x 65 of torch.float32, but x\[0\] is 64 x 64"),
        ([noise(1, 3, 64, 64)], r"x\[0\] has shape \(1, 3, 64, 64\); a list must hold single"),
        (noise(2, 3, 48, 64), r"x has images of 48 x 64 and y of 64 x 64"),
        (noise(3, 3, 64, 64), r"x has 3 images and y has 2: give the same number"),
    ],
)
def test_errors_name_the_input_and_the_fix(images, message):
    m, good = random_metric(), noise(2, 3, 64, 64)
    with pytest.raises(ImageError, match=message):
        m(images, good)


def test_the_remedies_that_errors_name_work():
    m, x = random_metric(), noise(2, 3, 64, 64)
    grey = noise(2, 1, 64, 64)
    m((x * 255).to(torch.uint8), x.movedim(1, -1).movedim(-1, -3))
    m(grey.expand(-1, 3, -1, -1), grey[0].expand(3, -1, -1))


def test_values_are_checked_unless_switched_off():
    m, x = random_metric(), noise(1, 3, 64, 64)
    m.check_values = False
    assert m(x * 255, x).isfinite().all()
    m.check_values = True
    assert m(x * 1.09 - 0.05, x).isfinite().all()  # a step of an optimizer
    with pytest.raises(ImageError):
        m(x * 255, x)


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_too_small_images(name):
    m = ImageMetric(PerceptualMetric(Backbone(name, pretrained=False)))
    smallest = smallest_side(name, None)
    fitting, small = noise(2, 3, smallest, smallest + 9), noise(2, 3, smallest - 1, smallest + 9)
    assert m(fitting, fitting.flip(0)).shape == (2,)
    for call in (lambda: m(small, small), lambda: m.matrix(small), lambda: m(small, small, spatial=True)):
        with pytest.raises(ImageError, match=f"too small for {name}, which needs at least {smallest} x {smallest}"):
            call()


def test_errors_of_rank():
    m, x = random_metric(), noise(2, 3, 64, 64)
    with pytest.raises(ImageError, match="ref must be one image, not 2"):
        m.rank(x, x)
    with pytest.raises(ImageError, match="candidates has values from"):
        m.rank(x[0], 255 * x)
    with pytest.raises(ConfigError, match="one context, not 2"):
        ImageMetric(PerceptualMetric(Backbone("alexnet"), torch.ones(2, 1152)))


def test_it_is_a_module():
    m, x = random_metric(), noise(2, 3, 64, 64)
    other = random_metric(seed=5)
    other.load_state_dict(m.state_dict())
    assert torch.equal(m(x, x.flip(0)), other(x, x.flip(0)))
    assert not any(parameter.requires_grad for parameter in m.parameters())
    assert "alexnet, spatial: adapted to judgements" in repr(m)
    half = m.bfloat16()(x, x.flip(0))
    assert torch.allclose(half.float(), other(x, x.flip(0)), rtol=0.05)


def test_importing_fastdps_imports_nothing_large():
    code = "import fastdps, sys; assert 'load' in dir(fastdps); print({'torch', 'numpy', 'rich'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "name",
    [
        "contexts.distortions",
        "contexts.philox",
        "contexts.rankings",
        "errors",
        "metric.backbones",
        "metric.image_metric",
        "metric.load",
        "metric.scores",
        "run_directory",
        "torchmetrics",
    ],
)
def test_examples_in_docstrings_run(name):
    found = doctest.testmod(importlib.import_module(f"fastdps.{name}"))
    assert found.attempted > 0
    assert found.failed == 0


def test_public_names():
    assert all(getattr(fastdps, name).__doc__ for name in fastdps.__all__)
    assert fastdps.__version__
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = fastdps.lod
