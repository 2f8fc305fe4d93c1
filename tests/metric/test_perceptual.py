"""The complete metric against the `lpips` package, and its file format."""

import json

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings
from fastdps.errors import ConfigError, FastDPSError
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import COMPARISONS, compared_channels, moments
from fastdps.metric.metric_file import read_contexts
from fastdps.metric.perceptual import PerceptualMetric
from helpers.lpips_oracle import lpips_oracle

#: net of `lpips`, our backbone, and its documented example distances (ref, p0) and (ref, p1).
EXAMPLES = [("alex", "alexnet", (0.72188, 0.13757)), ("vgg", "vgg16", (0.56861, 0.42166))]


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


def heads_of(oracle: lpips.LPIPS) -> torch.Tensor:
    return torch.cat([lin.model[1].weight.flatten() for lin in oracle.lins])[None]


@pytest.fixture(scope="module", params=EXAMPLES, ids=lambda example: example[0])
def example(request, weights_dir):
    net, name, documented = request.param
    state = load_file(weights_dir / f"{name}_features.safetensors")
    oracle = lpips_oracle(net, state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        return oracle, PerceptualMetric(Backbone(name), heads_of(oracle)), documented


def test_documented_distances(example, lpips_example):
    _, metric, documented = example
    images = [
        torch.from_numpy(np.array(Image.open(lpips_example / f"ex_{part}.png").convert("RGB"))).permute(2, 0, 1)[None]
        / 255
        for part in ("ref", "p0", "p1")
    ]
    for other, expected in zip(images[1:], documented, strict=True):
        assert metric(images[0], other).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (224, 160)])
def test_random_pairs_against_lpips(example, size):
    oracle, metric, _ = example
    x, y = torch.rand(2, 3, 3, *size, generator=torch.Generator().manual_seed(size[1]))
    with torch.no_grad():
        assert torch.allclose(metric(x, y)[:, 0], oracle(x, y, normalize=True).flatten(), atol=1e-5, rtol=0)


def test_distance_to_itself_and_symmetry():
    metric = PerceptualMetric(Backbone("alexnet"))
    x, y = torch.rand(2, 2, 3, 64, 64)
    assert (metric(x, x) == 0).all()
    assert torch.allclose(metric(x, y), metric(y, x))


def test_gradients_in_both_images():
    metric = PerceptualMetric(Backbone("alexnet"))
    x, y = (torch.rand(1, 3, 64, 64, requires_grad=True) for _ in range(2))
    metric(x, y).sum().backward()
    assert all(torch.isfinite(image.grad).all() and (image.grad != 0).any() for image in (x, y))


def test_moments_equal_single_pairs():
    metric = PerceptualMetric(Backbone("alexnet"))
    views = torch.rand(3, 7, 3, 64, 64)
    together = metric.moments(views).mean.sum(-1)
    alone = torch.stack([metric(views[:, 0], views[:, 1 + d])[:, 0] for d in range(6)], dim=1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_save_and_load(tmp_path):
    rankings = all_rankings(NAMES)[:3]
    metric = PerceptualMetric(Backbone("alexnet"), torch.rand(3, 1152), rankings)
    metric.save(tmp_path / "metric.safetensors")
    loaded = PerceptualMetric.load(tmp_path / "metric.safetensors")
    assert loaded.rankings == metric.rankings
    x, y = torch.rand(2, 2, 3, 64, 64)
    assert torch.equal(metric(x, y), loaded(x, y))
    assert [path.name for path in tmp_path.iterdir()] == ["metric.safetensors"]


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_save_and_load_comparison_and_taps(tmp_path, comparison):
    backbone = Backbone("alexnet", taps=(1, 4))
    channels = compared_channels((64, 192), comparison)
    metric = PerceptualMetric(backbone, torch.rand(2, sum(channels)), comparison=comparison)
    assert metric.channels == channels
    metric.save(tmp_path / "metric.safetensors")
    loaded = PerceptualMetric.load(tmp_path / "metric.safetensors")
    assert (loaded.comparison, loaded.backbone.taps, loaded.rankings) == (comparison, (1, 4), ())
    x, y = torch.rand(2, 2, 3, 64, 64)
    assert torch.equal(metric(x, y), loaded(x, y))
    expected = moments(backbone(torch.stack([x, y], dim=1).flatten(0, 1)), 1, comparison).mean[:, 0] @ metric.weights.T
    assert torch.allclose(metric(x, y), expected, rtol=1e-6)


def test_a_tuned_backbone_is_included(tmp_path, monkeypatch):
    path = tmp_path / "metric.safetensors"
    backbone = Backbone("alexnet", pretrained=False, seed=1)
    metric = PerceptualMetric(backbone, torch.rand(1, 1152))
    metric.save(path, include_backbone=True)
    with safe_open(path, framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata["backbone_weights"] == "included"
    assert names == {"weights", *(f"backbone.{name}" for name in backbone.state_dict())}
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(tmp_path))  # no pretrained weights are looked up
    monkeypatch.setattr("fastdps.metric.torchvision_backbones.load_pretrained", None)
    x, y = torch.rand(2, 2, 3, 64, 64)
    assert torch.equal(metric(x, y), PerceptualMetric.load(path)(x, y))


def rewrite(path, *, metadata=(), tensors=(), without=()):
    """Change or remove metadata or tensors of a metric file, which then has no hash of them, as old files."""
    with safe_open(path, framework="pt") as file:
        old = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {key: value for key, value in {**state, **dict(tensors)}.items() if key not in without}
    old = {key: value for key, value in {**old, **dict(metadata)}.items() if key not in without}
    for key in ("tensors_sha256", "metadata_sha256"):
        old.pop(key, None)
    save_file(state, path, metadata=old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"without": ["taps"]}, r"is incomplete: KeyError\('taps'\)"),
        ({"without": ["weights"]}, r"is incomplete: KeyError\('weights'\)"),
        ({"metadata": {"rankings": "[1"}}, r"is incomplete: JSONDecodeError"),
        ({"metadata": {"backbone_weights": "elsewhere"}}, r"is incomplete: KeyError\('elsewhere'\)"),
        ({"metadata": {"taps": "7"}}, r"is incomplete: TypeError"),
        ({"metadata": {"taps": "[1, 77]"}}, r"metric.safetensors: alexnet has no tap 77"),
        ({"metadata": {"taps": "[[]]"}}, r"metric.safetensors: alexnet has no tap \[\]"),
        (
            {"metadata": {"backbone": "alexnets"}},
            r"metric.safetensors: Unknown backbone 'alexnets'. Did you mean",
        ),
        ({"metadata": {"comparison": "man"}}, r"metric.safetensors: Unknown comparison 'man'. Did you mean 'mean'"),
        ({"metadata": {"comparison": "mean+sort"}}, r"Unknown comparison"),
        ({"metadata": {"comparison": "spatial+sort"}}, r"compared by spatial\+sort, needs weights \(K, 2304\)"),
        ({"without": ["backbone.features.3.bias"]}, r"metric.safetensors: .* lacks the tensor features\.3\.bias"),
        ({"tensors": {"backbone.features.3.bias": torch.zeros(192)}}, r"is damaged: the hash of its backbone"),
        ({"tensors": {"backbone.features.3.bias": torch.zeros(3)}}, r"has shape \(3,\), not \(192,\)"),
    ],
)
def test_incomplete_files(tmp_path, change, message):
    path = tmp_path / "metric.safetensors"
    PerceptualMetric(Backbone("alexnet", pretrained=False)).save(path, include_backbone=True)
    rewrite(path, **change)
    with pytest.raises(FastDPSError, match=message):
        PerceptualMetric.load(path)


@pytest.mark.parametrize("include_backbone", [True, False])
def test_a_flipped_bit_is_found(tmp_path, include_backbone):
    """40 of 40 flipped bits anywhere in the tensors."""
    path = tmp_path / "metric.safetensors"
    PerceptualMetric(Backbone("alexnet"), torch.rand(2, 1152)).save(path, include_backbone=include_backbone)
    PerceptualMetric.load(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    found = 0
    for at in np.random.default_rng(0).integers(start, len(content), 40):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(at) % 8
        path.write_bytes(damaged)
        with pytest.raises(FastDPSError, match=r"metric.safetensors is damaged: the hash of its tensors is .*Restore"):
            PerceptualMetric.load(path)
        found += 1
    assert found == 40


def test_changed_metadata_are_found(tmp_path):
    """Each value. A flipped bit can turn tap 1 into tap 0, a layer of the same channels with other distances."""
    path = tmp_path / "metric.safetensors"
    metric = PerceptualMetric(Backbone("alexnet", taps=(1, 4), pretrained=False), rankings=[("blur", "color")])
    metric.save(path, include_backbone=True)
    PerceptualMetric.load(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for key, value in metadata.items():
        if key not in ("format", "format_version"):  # named before
            other = value.replace("1", "0") if key == "taps" else value[:-1] + chr(ord(value[-1]) ^ 1)
            save_file(state, path, metadata=metadata | {key: other})
            for read in (PerceptualMetric.load, read_contexts):
                with pytest.raises(FastDPSError, match=r"metric.safetensors is damaged: the hash of its metadata is "):
                    read(path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_backbone_that_is_not_finite_is_refused(tmp_path, value):
    path = tmp_path / "metric.safetensors"
    backbone = Backbone("alexnet", taps=(1,), pretrained=False)
    backbone.state_dict()["features.0.bias"][7] = value
    PerceptualMetric(backbone).save(path, include_backbone=True)
    with pytest.raises(FastDPSError, match=r"is damaged: backbone\.features\.0\.bias is not finite"):
        PerceptualMetric.load(path)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(1, 1152, dtype=torch.int32), "its weights are int32, not floating"),
        (torch.ones(1, 1152, dtype=torch.bool), "its weights are bool, not floating"),
        (torch.ones(1, 1152, dtype=torch.complex64), "its weights are complex64, not floating"),
        (torch.ones(1152), r"its weights have the shape \(1152,\), not \(K, C\)"),
        (torch.ones(0, 1152), r"its weights have the shape \(0, 1152\), not \(K, C\)"),
        (torch.ones(1, 1152).index_fill(1, torch.tensor(7), torch.nan), "its weights are not all finite"),
        (torch.ones(1, 1152).index_fill(1, torch.tensor(7), torch.inf), "its weights are not all finite"),
        (torch.full((1, 1152), 1e300, dtype=torch.float64), "its weights are not all finite"),
        (torch.ones(1, 1152).index_fill(1, torch.tensor(7), -1e-9), "its weights are not all at least 0"),
    ],
)
@pytest.mark.parametrize("is_new", [True, False])
def test_impossible_weights_are_refused(tmp_path, weights, message, is_new):
    """In new files and in files without a hash, as fastdps 0.1.0 wrote."""
    path = tmp_path / "metric.safetensors"
    metric = PerceptualMetric(Backbone("alexnet"))
    metric.weights = weights
    metric.save(path)
    if not is_new:
        rewrite(path)
    with pytest.raises(FastDPSError, match=f"metric.safetensors is damaged: {message}.*Restore"):
        PerceptualMetric.load(path)


def test_old_files_load(tmp_path):
    """Files without a hash of the tensors, and weights of any floating type, as float32."""
    path = tmp_path / "metric.safetensors"
    metric = PerceptualMetric(Backbone("alexnet"), torch.rand(1, 1152))
    metric.save(path)
    rewrite(path)
    x, y = torch.rand(2, 2, 3, 64, 64)
    assert torch.equal(PerceptualMetric.load(path)(x, y), metric(x, y))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        rewrite(path, tensors={"weights": metric.weights.to(dtype)})
        loaded = PerceptualMetric.load(path)
        assert torch.equal(loaded.weights, metric.weights.to(dtype).float())
        assert loaded(x, y).isfinite().all()


def test_other_backbone_weights_are_rejected(tmp_path):
    metric = PerceptualMetric(Backbone("alexnet", pretrained=False))
    metric.save(tmp_path / "metric.safetensors")
    with pytest.raises(FastDPSError, match="other weights of alexnet"):
        PerceptualMetric.load(tmp_path / "metric.safetensors")


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "metric.safetensors"
    with pytest.raises(FastDPSError, match=r"does not exist"):
        PerceptualMetric.load(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(FastDPSError, match=r"metric.safetensors cannot be read"):
        PerceptualMetric.load(path)
    save_file({"weights": torch.ones(1, 2)}, path)
    with pytest.raises(FastDPSError, match=r"is not a metric of fastdps"):
        PerceptualMetric.load(path)
    save_file({"weights": torch.ones(1, 2)}, path, metadata={"format": "fastdps-metric", "format_version": "99"})
    with pytest.raises(FastDPSError, match=r"format version 99"):
        PerceptualMetric.load(path)


def test_metadata_can_be_read_without_fastdps(tmp_path):
    PerceptualMetric(Backbone("alexnet"), rankings=all_rankings(NAMES)[:1]).save(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        metadata = file.metadata()
        assert json.loads(metadata["rankings"]) == [list(NAMES)]
        assert json.loads(metadata["taps"]) == [1, 4, 7, 9, 11]
        assert json.loads(metadata["channels"]) == [64, 192, 384, 256, 256]
        assert metadata["backbone_weights"] == "pretrained"
        assert list(file.keys()) == ["weights"]
        assert file.get_tensor("weights").shape == (1, 1152)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 65), "of one size"),
        (torch.zeros(3, 64, 64), torch.zeros(3, 64, 64), r"\(n, 3, H, W\)"),
        (torch.zeros(1, 64, 64, 3), torch.zeros(1, 64, 64, 3), r"\(n, 3, H, W\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "divide uint8"),
    ],
)
def test_wrong_images_are_rejected(x, y, message):
    metric = PerceptualMetric(Backbone("alexnet", pretrained=False))
    with pytest.raises(ValueError, match=message):
        metric(x, y)


def test_wrong_heads_are_rejected():
    backbone = Backbone("alexnet", pretrained=False)
    with pytest.raises(ConfigError, match=r"alexnet, compared by spatial, needs weights \(K, 1152\)"):
        PerceptualMetric(backbone, torch.ones(1, 5))
    with pytest.raises(ConfigError, match="Unknown comparison 'sorted'"):
        PerceptualMetric(backbone, comparison="sorted")
    with pytest.raises(ConfigError, match="2 rows of weights do not match 1 rankings"):
        PerceptualMetric(backbone, torch.ones(2, 1152), all_rankings(NAMES)[:1])
