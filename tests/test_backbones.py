"""Backbones against torchvision's own networks."""

import pytest
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.functional import normalize

from fastdps.backbones import BACKBONES, Backbone
from fastdps.errors import ConfigError


@pytest.mark.parametrize("name", BACKBONES)
def test_taps_against_torchvision(name):
    torch.manual_seed(0)
    backbone = Backbone(name, pretrained=False).eval()
    oracle = getattr(torchvision.models, name)(weights=None).eval()
    oracle.features.load_state_dict(backbone.features.state_dict(), strict=False)
    extractor = create_feature_extractor(oracle, {f"features.{tap}": str(tap) for tap in BACKBONES[name].taps})
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        ours = backbone(images)
        theirs = extractor(normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert [feature.shape[1] for feature in ours] == list(backbone.channels)
    for tap, feature in zip(BACKBONES[name].taps, ours, strict=True):
        assert torch.allclose(feature, theirs[str(tap)], rtol=1e-4, atol=1e-5)


def test_unknown_backbone():
    with pytest.raises(ConfigError, match="Known: alexnet, vgg16"):
        Backbone("resnet9000")


def test_network_ends_behind_its_last_tap():
    assert len(Backbone("alexnet", pretrained=False).features) == 12
