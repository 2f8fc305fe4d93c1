"""Backbones against torchvision's own networks, with random weights and small images."""

import warnings

import pytest
import torch
from lpips import pretrained_networks
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.functional import normalize

from fastdps.errors import ConfigError, WeightsMismatchError
from fastdps.metric.backbones import BACKBONES, HALF, Backbone
from fastdps.metric.distances import moments
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.torchvision_backbones import backbone_spec

#: Models for which torchvision's pretrained constructors differ from the plain ones.
PRETRAINED_OPTIONS = {
    name: {"transform_input": True, "aux_logits": False, "init_weights": False}
    for name in ("googlenet", "inception_v3")
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Use one thread: with images this small, threads wait longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "efficientnet_b7")) for name in BACKBONES],
)
def backbone(request):
    """A random backbone of the table. It is shared, so a test that changes it makes a copy."""
    return Backbone(request.param, pretrained=False)


def images_of(n: int, size: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_taps_against_torchvision(backbone):
    """Features equal those of torchvision's pretrained model on its preset's input, apart from weights."""
    name = backbone.name
    with torch.device("meta"):
        oracle = models.get_model(name, weights=None, **PRETRAINED_OPTIONS.get(name, {})).eval()
    unexpected = oracle.load_state_dict(backbone.state_dict(), strict=False, assign=True).unexpected_keys
    assert not unexpected
    prefix, sequence = ("features.", oracle.features) if hasattr(oracle, "features") else ("", oracle)
    names = [prefix + layer for layer, _ in sequence.named_children()]
    extractor = create_feature_extractor(oracle, {names[tap]: str(tap) for tap in BACKBONES[name].taps})
    preset = models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    images = images_of(2)
    with torch.no_grad():
        ours = backbone(images)
        theirs = extractor(normalize(images, preset.mean, preset.std))
    assert [feature.shape[1] for feature in ours] == list(backbone.channels)
    for tap, feature in zip(BACKBONES[name].taps, ours, strict=True):
        # Vanishing random features would equal anything.
        assert feature.std() > 0.01
        # Features of random networks grow with depth, and layouts differ in rounding: 1e-4 of their size.
        atol = 1e-4 * max(1.0, feature.abs().max().item())
        assert torch.allclose(feature, theirs[str(tap)], rtol=1e-3, atol=atol)


def test_a_training_step_changes_all_weights(backbone):
    tuned = Backbone(backbone.name, state=backbone.state_dict()).requires_grad_(True).train()
    before = {key: value.clone() for key, value in tuned.state_dict().items()}
    optimizer = torch.optim.Adam(tuned.parameters(), lr=1e-3)
    d0, d1 = moments(tuned(images_of(3)), 2).mean.sum(dim=-1).unbind(dim=1)
    F.softplus(d0 - d1).mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in tuned.parameters())
    optimizer.step()
    trained = {key for key, _ in tuned.named_parameters()}  # and so without the statistics of BatchNorm
    after = tuned.state_dict()
    assert trained
    assert {key for key in after if not torch.equal(after[key], before[key])} == trained


def test_a_tuned_backbone_is_saved_and_loaded(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("fastdps.metric.torchvision_backbones.load_pretrained", None)  # must not be looked up
    metric = PerceptualMetric(backbone, comparison="mean")
    metric.save(tmp_path / "metric.safetensors", include_backbone=True)
    loaded = PerceptualMetric.load(tmp_path / "metric.safetensors")
    ours, theirs = backbone.state_dict(), loaded.backbone.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    x, y = images_of(2).split(1)
    assert torch.equal(loaded(x, y), metric(x, y))


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("alexnet", pretrained_networks.alexnet),
        ("vgg16", pretrained_networks.vgg16),
        ("squeezenet1_1", pretrained_networks.squeezenet),
    ],
)
def test_taps_against_lpips(name, oracle):
    backbone = Backbone(name, pretrained=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision in a way that is deprecated
        network = oracle(pretrained=False, requires_grad=False).eval()
    own = backbone.state_dict()
    network.load_state_dict({key: own["features." + key.split(".", 1)[1]] for key in network.state_dict()})
    images = images_of(1)
    with torch.no_grad():
        theirs = network((images - backbone.mean) / backbone.std)
        for one, other in zip(backbone(images), theirs, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


#: Channels of the taps according to the papers of the networks.
CHANNELS = {
    "alexnet": (64, 192, 384, 256, 256),
    "vgg16": (64, 128, 256, 512, 512),
    "squeezenet1_1": (64, 128, 256, 384, 384, 512, 512),
    "vgg11": (64, 128, 256, 512),
    "vgg16_bn": (64, 128, 256, 512),
    "vgg19": (64, 128, 256, 512),
    "densenet121": (64, 256, 512, 1024),
    "resnet18": (64, 64, 128, 512),
    "resnet50": (64, 256, 512, 2048),
    "resnext50_32x4d": (64, 256, 512, 2048),
    "googlenet": (64, 256, 512, 1024),
    "inception_v3": (64, 256, 288, 768),
    "efficientnet_b0": (32, 16, 80, 320),
    "efficientnet_b7": (64, 32, 160, 640),
}


def test_channels_of_the_table(backbone):
    assert backbone.channels == CHANNELS[backbone.name]


def test_normalisation_of_networks_ported_from_tensorflow():
    """Inputs are scaled as in these models: [0, 1] to [-1, 1]."""
    for name in ("googlenet", "inception_v3"):
        assert (BACKBONES[name].mean, BACKBONES[name].std) == (HALF, HALF)


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18"])
def test_layers_compute_as_in_evaluation_while_training(name):
    backbone = Backbone(name, pretrained=False)
    images = images_of(4)
    with torch.no_grad():
        expected = backbone.eval()(images)
        state = {key: value.clone() for key, value in backbone.state_dict().items()}
        trained = backbone.train()(images)
    assert backbone.training
    assert all(torch.equal(one, other) for one, other in zip(expected, trained, strict=True))
    after = backbone.state_dict()
    assert all(torch.equal(state[key], after[key]) for key in state)


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_random_weights_come_from_the_seed_alone(name):
    generator_state = torch.random.get_rng_state()
    first = Backbone(name, pretrained=False, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), generator_state)
    torch.rand(1)
    again = Backbone(name, pretrained=False, seed=1).state_dict()
    other = Backbone(name, pretrained=False, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if key.endswith("0.weight"))


@pytest.mark.parametrize(("name", "layers"), [("alexnet", 13), ("resnet18", 9), ("densenet121", 12)])
def test_no_layer_writes_into_what_a_tap_returned(name, layers):
    backbone = Backbone(name, taps=range(layers), pretrained=False)
    x = (images_of(1) - backbone.mean) / backbone.std
    with torch.no_grad():
        outputs = backbone(images_of(1))
        for (_, layer), output in zip(backbone.layers, outputs, strict=True):
            x = layer(x.clone())
            assert torch.allclose(output, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg16_bn"])
def test_a_tap_does_not_depend_on_the_others(name):
    """The output of a convolution may be overwritten only where it is not tapped."""
    whole = Backbone(name, taps=range(12), pretrained=False)
    state = whole.state_dict()
    with torch.no_grad():
        everything = whole(images_of(2))
        for taps in ((0,), (1, 3), (0, 1, 4), (3, 4, 10), (6, 8, 10, 11)):
            some = Backbone(name, taps=taps, state=state)
            for tap, feature in zip(taps, some(images_of(2)), strict=True):
                assert torch.equal(feature, everything[tap])


@pytest.mark.parametrize("size", [64, 96])
def test_gradients_against_torchvision(size):
    """Gradients of maps of 3 x 3 and larger, whose layouts differ on a CPU."""
    backbone = Backbone("alexnet", pretrained=False)
    oracle = models.alexnet(weights=None).features[:12]
    oracle.load_state_dict({key.removeprefix("features."): x for key, x in backbone.state_dict().items()})
    backbone(images_of(3, size))[-1].square().sum().backward()
    oracle((images_of(3, size) - backbone.mean) / backbone.std).square().sum().backward()
    for ours, theirs in zip(backbone.parameters(), oracle.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-4 * theirs.grad.abs().max()


def test_taps_of_ones_own():
    backbone = Backbone("alexnet", taps=[4, 1], pretrained=False)
    assert (backbone.taps, backbone.channels) == ((1, 4), (64, 192))
    assert len(backbone.features) == 5


@pytest.mark.parametrize(
    ("name", "taps", "channels"),
    [("resnet34", (4, 7), (64, 512)), ("mobilenet_v2", (1, 6), (16, 32)), ("regnet_y_400mf", (0,), (32,))],
)
def test_any_torchvision_model_with_taps(name, taps, channels):
    backbone = Backbone(name, taps=taps, pretrained=False)
    assert backbone.channels == channels
    assert [feature.shape[1] for feature in backbone(images_of(1))] == list(channels)


def test_normalisation_of_other_models_is_that_of_their_weights():
    assert backbone_spec("efficientnet_v2_l").mean == HALF
    assert backbone_spec("resnet34").mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("name", "taps", "message"),
    [
        (
            "resnet9000",
            None,
            r"Unknown backbone 'resnet9000'\. Did you mean resnet.*With preset taps: alexnet",
        ),
        ("resnet34", None, r"must be given for resnet34, which has no preset\. Its taps: 0 conv1 \(Conv2d\), 1 bn1"),
        ("alexnet", (), r"Taps must be given for alexnet\."),
        ("alexnet", (1, 13), r"alexnet has no tap 13\. Its taps: 0 \(Conv2d\), 1 \(ReLU\), .*12 \(MaxPool2d\)\."),
        ("densenet121", (-1,), r"no tap -1\. Its taps: 0 conv0 \(Conv2d\)"),
        ("alexnet", ("1",), r"no tap '1'"),
        ("alexnet", (1, 4, 1), r"Tap 1 of alexnet is given more than once"),
        ("vit_b_16", (1,), r"layers of vit_b_16 cannot be run one after another: 1 encoder \(Encoder\).*taps below 1"),
        ("resnet18", (9,), r"layers of resnet18 cannot be run one after another: 9 fc \(Linear\).*taps below 9"),
        ("swin_t", (0,), r"Tap 0 of swin_t, 0 \(Sequential\), does not return feature maps"),
    ],
)
def test_invalid_taps_are_rejected(name, taps, message):
    with pytest.raises(ConfigError, match=message):
        Backbone(name, taps=taps, pretrained=False)


def test_a_state_that_does_not_fit():
    state = Backbone("alexnet", pretrained=False).state_dict()
    with pytest.raises(WeightsMismatchError, match=r"lacks the tensor features\.3\.bias of alexnet"):
        Backbone("alexnet", state={key: value for key, value in state.items() if key != "features.3.bias"})
    with pytest.raises(WeightsMismatchError, match=r"features\.3\.bias of alexnet.* has shape \(5,\), not \(192,\)"):
        Backbone("alexnet", state=state | {"features.3.bias": torch.zeros(5)})


def test_a_state_is_copied():
    state = Backbone("resnet18", pretrained=False).state_dict()
    backbone = Backbone("resnet18", state=state)
    with torch.no_grad():
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            tensor.add_(1)
    assert not any(torch.equal(state[key], value) for key, value in backbone.state_dict().items())


def test_batch_norm_of_a_random_network_normalises():
    """Without measured statistics the features of a deep network vanish."""
    backbone = Backbone("googlenet", pretrained=False)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any((norm.running_var == 1).any() for norm in norms)
    assert all(norm.num_batches_tracked == 0 and norm.momentum == nn.BatchNorm2d(1).momentum for norm in norms)
