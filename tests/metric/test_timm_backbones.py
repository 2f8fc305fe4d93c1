"""Backbones of timm against timm's own models, with random weights and small images; registered and combined ones."""

import copy
import json
import pickle
import sys

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize

import fastdps
from fastdps.errors import ConfigError, FastDPSError, WeightsNotFoundError
from fastdps.export.onnx_model import OnnxModel
from fastdps.export.program import ExportedProgram
from fastdps.export.write import write_verified
from fastdps.metric import adapters
from fastdps.metric.adapters import BackboneAdapter, register_backbone
from fastdps.metric.backbones import Backbone, check_backbone, is_backbone
from fastdps.metric.distances import moments
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.image_sizes import smallest_side
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.timm_backbones import timm_adapter

SMALL = "tf_efficientnet_lite0"
#: Default taps and channels, from the papers of the models.
FAMILIES = {
    SMALL: ((0, 1, 2, 3, 4), (16, 24, 40, 112, 320)),
    "resnet50": ((0, 1, 2, 3, 4), (64, 256, 512, 1024, 2048)),
    "convnext_tiny": ((0, 1, 2, 3), (96, 192, 384, 768)),
    "swin_tiny_patch4_window7_224": ((0, 1, 2, 3), (96, 192, 384, 768)),
    "vit_small_patch16_224": ((2, 5, 8, 11), (384,) * 4),
    "vit_small_patch14_dinov2": ((2, 5, 8, 11), (384,) * 4),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Use one thread: with images this small, threads wait longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(
    scope="module", params=[name if name == SMALL else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def backbone(request):
    """A random backbone. It is shared, so a test that changes it makes a copy."""
    return Backbone(f"timm/{request.param}", pretrained=False)


@pytest.fixture(autouse=True)
def _unregister(monkeypatch):
    monkeypatch.setattr(adapters, "_registered", {})


def images_of(n: int, height: int = 64, width: int = 72) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def features_of_timm(name: str, state: dict[str, torch.Tensor], images: torch.Tensor) -> list[torch.Tensor]:
    """Return the features by timm's feature extractor, or for a vision transformer block by block."""
    plain = name.startswith("vit")
    options = {"dynamic_img_size": True} if plain else {"features_only": True}
    oracle = timm.create_model(name, **options).eval()
    # The extractor names stages `layer_0` that the model names `layer.0`.
    theirs = {key.replace("_", "."): key for key in oracle.state_dict()}
    oracle.load_state_dict({theirs[key.replace("_", ".")]: x for key, x in state.items()}, strict=False)
    config = oracle.pretrained_cfg if plain else timm.get_pretrained_cfg(name).to_dict()
    x = normalize(images, config["mean"], config["std"])
    if not plain:
        maps = oracle(x)
        return [one.permute(0, 3, 1, 2) if name.startswith("swin") else one for one in maps]
    patch, maps = oracle.patch_embed.patch_size[0], []
    x = oracle._pos_embed(oracle.patch_embed(x))
    for number, block in enumerate(oracle.blocks):
        x = block(x)
        if number in FAMILIES[name][0]:
            tokens = oracle.norm(x)[:, 1:]  # without the class token
            maps.append(tokens.mT.unflatten(2, (images.shape[2] // patch, images.shape[3] // patch)))
    return maps


def test_taps_against_timm(backbone):
    name = backbone.name.removeprefix("timm/")
    assert (backbone.taps, backbone.channels) == FAMILIES[name]
    side = 28 if "patch14" in name else 32
    images = images_of(2, 224, 224) if name.startswith("swin") else images_of(2, 2 * side, 3 * side)
    state = {key.removeprefix("model."): x for key, x in backbone.state_dict().items()}
    with torch.no_grad():
        pairs = list(zip(backbone(images), features_of_timm(name, state, images), strict=True))
    for ours, theirs in pairs:
        assert theirs.std() > 0.01  # vanishing random features would equal anything
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * max(1.0, theirs.abs().max().item()))


def test_images_of_any_size(backbone):
    assert smallest_side(backbone.name, None) <= 32
    with torch.no_grad():
        for size in ((33, 64), (64, 65)):
            assert all(maps.isfinite().all() for maps in backbone(images_of(1, *size)))


def test_a_training_step_changes_all_weights(backbone):
    tuned = Backbone(backbone.name, state=backbone.state_dict()).requires_grad_(True).train()
    for norm in (module for module in tuned.modules() if isinstance(module, nn.BatchNorm2d)):
        if not norm.weight.any():  # as ResNets start, where the layers before it would have no gradient
            nn.init.ones_(norm.weight)
    before = {key: value.clone() for key, value in tuned.state_dict().items()}
    optimizer = torch.optim.Adam(tuned.parameters(), lr=1e-3)
    d0, d1 = moments(tuned(images_of(3)), 2).mean.sum(dim=-1).unbind(dim=1)
    F.softplus(d0 - d1).mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in tuned.parameters())
    optimizer.step()
    trained = {key for key, _ in tuned.named_parameters()}  # and so without the statistics of BatchNorm
    after = tuned.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    # Softmax ignores a constant of all keys: their bias may have no gradient but rounding.
    assert trained - changed <= {key for key in trained if "qkv.bias" in key}
    assert changed <= trained


def test_a_tuned_backbone_is_saved_and_loaded(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("fastdps.metric.model_backbones.load_pretrained", None)  # must not be looked up
    metric = PerceptualMetric(backbone, comparison="mean")
    metric.save(tmp_path / "metric.safetensors", include_backbone=True)
    with safe_open(tmp_path / "metric.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["backbone"], metadata["backbone_library"]) == (backbone.name, f"timm {timm.__version__}")
    assert json.loads(metadata["taps"]) == list(backbone.taps)
    loaded = PerceptualMetric.load(tmp_path / "metric.safetensors")
    x, y = images_of(2).split(1)
    assert torch.equal(loaded(x, y), metric(x, y))
    again = pickle.loads(pickle.dumps(copy.deepcopy(metric)))
    assert torch.equal(again(x, y), metric(x, y))


def test_the_matrix_equals_the_pairs(backbone):
    metric, images = ImageMetric(PerceptualMetric(backbone)), images_of(4)
    with torch.no_grad():
        pairs = torch.stack([metric(image[None], images) for image in images])
    assert torch.allclose(metric.matrix(images), pairs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [(SMALL, ExportedProgram), *((name, OnnxModel) for name in FAMILIES)])
def test_exported_files_compute_the_same(name, form, tmp_path):
    """The other library is compared on images of several sizes. Two taps, which are written faster than all.

    An ONNX model is made from a program of torch.export, so one of these alone is enough.
    """
    metric = PerceptualMetric(Backbone(f"timm/{name}@0,1", pretrained=False))
    verified = write_verified(metric, form(), tmp_path / f"metric{form.suffix}", {})
    assert verified.pairs == 16
    assert verified.largest_distance > 0.1


def test_taps_of_ones_own():
    backbone = Backbone("timm/tf_efficientnet_lite0@3,1", pretrained=False)
    assert (backbone.name, backbone.taps, backbone.channels) == (f"timm/{SMALL}", (1, 3), (24, 112))
    assert not any(key.startswith("model.blocks.5") for key in backbone.state_dict())
    assert Backbone("alexnet@4,1", pretrained=False).channels == (64, 192)


@pytest.mark.parametrize(
    ("name", "taps", "message"),
    [
        ("timm/resnet5000", None, r"has no model 'resnet5000'\. Did you mean timm/resnet50"),
        ("timm/resnet18@5", None, r"timm/resnet18 has no tap 5\. Its taps: 0, 1, 2, 3, 4"),
        ("timm/resnet18@1,1", None, r"Tap 1 of timm/resnet18 is given more than once"),
        ("timm/resnet18@a", None, r"must end in whole numbers such as timm/resnet18@1,2,3"),
        ("timm/resnet18@1", (2,), r"timm/resnet18@1 already has taps: leave out 2"),
        ("alexnet+alexnet", None, r"must name different backbones"),
        ("alexnet+", None, r"must name different backbones"),
        ("squeezenet1_1+timm/resnet18", (3, 4), r"Taps of squeezenet1_1\+timm/resnet18 are chosen within its name"),
        ("squeezenet1_1+resnet9000", None, r"Unknown backbone 'resnet9000'"),
    ],
)
def test_names_that_are_wrong(name, taps, message):
    with pytest.raises(ConfigError, match=message):
        check_backbone(name, taps)
    with pytest.raises(ConfigError, match=message):
        Backbone(name, taps=taps, pretrained=False)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    timm_adapter.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FastDPSError, match=r"needs timm: pip install 'fastdps\[timm\]'"):
        check_backbone("timm/resnet18", None)


def test_backbones_side_by_side(tmp_path):
    name = f"squeezenet1_1@1,4+timm/{SMALL}@0,4"
    both = Backbone(name, pretrained=False)
    parts = [Backbone(part, pretrained=False) for part in name.split("+")]
    assert both.channels == (64, 128, 16, 320)
    assert both.library == f"{parts[0].library}, {parts[1].library}"
    images = images_of(3)
    with torch.no_grad():
        for ours, theirs in zip(both(images), (m for part in parts for m in part(images)), strict=True):
            assert torch.equal(ours, theirs)
    x, y = images.split([1, 2])
    metric = PerceptualMetric(both)
    apart = [PerceptualMetric(part)(x.expand(2, -1, -1, -1), y) for part in parts]
    assert torch.allclose(metric(x.expand(2, -1, -1, -1), y), apart[0] + apart[1])
    assert smallest_side(name, None) == smallest_side("squeezenet1_1", (1, 4))
    metric.save(tmp_path / "both.safetensors", include_backbone=True)
    loaded = PerceptualMetric.load(tmp_path / "both.safetensors")
    assert torch.equal(loaded(x, y[:1]), metric(x, y[:1]))


class Patches(nn.Module):
    """A model that takes only multiples of 8 px, as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 8, stride=8)
        self.mix = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        assert x.shape[2] % 8 == x.shape[3] % 8 == 0
        first = self.embed(x)
        return [first, self.mix(first)]


def adapter(**changes) -> BackboneAdapter:
    settings = {
        "build": Patches,
        "features": lambda model, images, taps: [model(images)[tap] for tap in taps],
        "taps": (0, 1),
        "multiple": 8,
        "mean": (0.1, 0.2, 0.3),
        "library": "mine 1.0",
    }
    return BackboneAdapter(**settings | changes)


def test_a_registered_model_serves_as_a_backbone(tmp_path):
    weights = Patches().state_dict()
    fastdps.register_backbone("patches", adapter(weights=lambda: weights))
    metric = fastdps.load("patches")
    images = images_of(2, 30, 41)
    with torch.no_grad():
        oracle = Patches()
        oracle.load_state_dict(weights)
        scaled = F.interpolate(images, size=(32, 48), mode="bilinear")
        maps = oracle(normalize(scaled, (0.1, 0.2, 0.3), adapters.IMAGENET_STD))
        expected = sum((a[:1] - a[1:]).square().sum(1).mean() for a in (F.normalize(one, dim=1) for one in maps))
        assert torch.allclose(metric(*images.split(1)), expected, atol=1e-6)
    metric.metric.save(tmp_path / "metric.safetensors")
    again = fastdps.load(tmp_path / "metric.safetensors")
    assert again.metric.backbone.library == "mine 1.0"
    adapters._registered.clear()
    with pytest.raises(ConfigError, match=r"register_backbone"):
        fastdps.load(tmp_path / "metric.safetensors")


def test_adapters_that_are_wrong():
    for name in ("alexnet", "timm/mine", "a+b", "a@1", "", "a b"):
        with pytest.raises(ConfigError, match="cannot be registered"):
            register_backbone(name, adapter())
    register_backbone("mine", adapter(tap_count=2))
    assert is_backbone("mine+alexnet@1")
    assert not is_backbone("runs/mine")
    with pytest.raises(ConfigError, match=r"mine has no tap 2\. Its taps: 0, 1"):
        check_backbone("mine@2", None)
    with pytest.raises(WeightsNotFoundError, match="registered without weights"):
        Backbone("mine")
    register_backbone("mine", adapter(features=lambda model, images, _: [model(images)[0].flatten(2)]))
    with pytest.raises(ConfigError, match=r"mine returned features of shapes \(1, 6, 64\), not one map"):
        Backbone("mine", pretrained=False)
