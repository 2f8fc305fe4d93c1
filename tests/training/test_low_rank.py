"""LoRA: a backbone that changes by products of small matrices."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from fastdps.commands import cli
from fastdps.errors import ConfigError
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.training.low_rank import add_low_rank, merge_low_rank
from fastdps.training.recipes import get_recipe

RANK = 2
NAME = "timm/tf_efficientnet_lite0@0,2"


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(24, 40, seed=1), out, PackOptions(size=40), workers=1)
    return out / "train"


def images_of(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("name", [NAME, "alexnet@1,4", "timm/vit_tiny_patch16_224@0"])
def test_the_sum_is_merged(name):
    before = Backbone(name, pretrained=False)
    backbone = copy.deepcopy(before)
    trained = add_low_rank(backbone, RANK, seed=0)
    images = images_of(2)
    assert all(torch.equal(a, b) for a, b in zip(before(images), backbone(images), strict=True))  # `up` is zero
    assert {id(p) for p in trained} == {id(p) for p in backbone.parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained) < sum(p.numel() for p in before.parameters()) / 4
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        changed = backbone(images)
        merge_low_rank(backbone)
        assert all(torch.equal(a, b) for a, b in zip(changed, backbone(images), strict=True))
    own, old = backbone.state_dict(), before.state_dict()
    assert own.keys() == old.keys()
    ranks = [
        torch.linalg.matrix_rank((own[key] - old[key]).flatten(1), tol=1e-3).item() for key in own if own[key].dim() > 1
    ]
    assert set(ranks) <= {0, RANK}
    assert ranks.count(RANK) == len(trained) / 2
    assert all(torch.equal(own[key], old[key]) for key in own if own[key].dim() < 2)


def test_the_matrices_learn_as_the_weights_would():
    """The gradient of `up` is that of the weight times `down` transposed, by the chain rule."""
    plain, backbone = Backbone(NAME, pretrained=False), Backbone(NAME, pretrained=False)
    add_low_rank(backbone, RANK, seed=0)
    for one in (plain, backbone):
        sum(maps.square().mean() for maps in one(images_of(2))).backward()
    layer = backbone.model.blocks[1][0].conv_pw
    added = layer.parametrizations.weight[0]
    wanted = plain.model.blocks[1][0].conv_pw.weight.grad.flatten(1) @ added.down.detach().T
    torch.testing.assert_close(added.up.grad, wanted, rtol=1e-3, atol=1e-6)
    assert not added.down.grad.any()
    assert layer.parametrizations.weight.original.grad is None


def test_a_run_writes_merged_weights(leaves, tmp_path):
    argv = ["train", "--shards", str(leaves), "--variant", "shared", "--contexts", "2", "--augment", "none"]
    argv += ["--backbone", "alexnet@1,4", "--lora", str(RANK), "--epochs", "1", "--batch-size", "8"]
    assert cli.main([*argv, "--out", str(tmp_path / "run")]) == 0
    state = load_file(tmp_path / "run/metric.safetensors")
    old = Backbone("alexnet", taps=(1, 4)).state_dict()
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key != "weights"}
    assert own.keys() == old.keys()
    assert torch.linalg.matrix_rank((own["features.3.weight"] - old["features.3.weight"]).flatten(1), tol=1e-6) == RANK
    assert torch.equal(own["features.3.bias"], old["features.3.bias"])
    PerceptualMetric.load(tmp_path / "run/metric.safetensors")
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["lora"] == RANK


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": -1}, "lora is -1"),
        ({"lora": 4, "variant": "lin"}, r"lora is 4; .*variant shared or tune"),
        ({"lora": 4, "variant": "scratch"}, "lora is 4"),
        ({"lora": 1.5}, "lora must be a whole number"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        get_recipe("shared", settings)


def test_a_rank_that_is_too_high():
    with pytest.raises(
        ConfigError, match=r"No layer of alexnet has a weight of a rank above 64\. Choose a lower --lora"
    ):
        add_low_rank(Backbone("alexnet", taps=(1,), pretrained=False), 64, seed=0)
