"""Loading by run (one metric file or several), metric file and backbone name, and suggestions in errors."""

import itertools

import pytest
import torch
from safetensors.torch import load_file

import fastdps
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings
from fastdps.errors import ConfigError, FastDPSError
from fastdps.metric import published
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from helpers.lpips_oracle import lpips_oracle

RANKINGS = all_rankings(NAMES)[::101]
IMAGES = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


def random_weights(contexts: int) -> torch.Tensor:
    return torch.rand(contexts, 1152, generator=torch.Generator().manual_seed(contexts))


@pytest.fixture
def run(tmp_path):
    """A run of several contexts in one file."""
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text("{}")
    PerceptualMetric(Backbone("alexnet"), random_weights(len(RANKINGS)), RANKINGS).save(run.metric)
    return run


def test_a_context_of_a_run(run):
    whole = PerceptualMetric.load(run.metric)(*IMAGES)
    for number, ranking in enumerate(RANKINGS):
        for context in (",".join(ranking), ", ".join(ranking), list(ranking)):
            m = fastdps.load(str(run.path), context)
            assert m.context == ranking
            assert torch.allclose(m(*IMAGES), whole[:, number], atol=1e-6)
    assert torch.equal(fastdps.load(run.metric, RANKINGS[1])(*IMAGES), fastdps.load(run.path, RANKINGS[1])(*IMAGES))


def test_a_run_with_a_file_for_each_context(run):
    run.metric.unlink()
    run.metric_of(0).parent.mkdir()
    backbones = [Backbone("alexnet", pretrained=False, seed=seed) for seed in range(2)]
    for number, backbone in enumerate(backbones):
        PerceptualMetric(backbone, rankings=[RANKINGS[number]]).save(run.metric_of(number), include_backbone=True)
    for number, backbone in enumerate(backbones):
        m = fastdps.load(run.path, RANKINGS[number])
        assert torch.allclose(m(*IMAGES), PerceptualMetric(backbone)(*IMAGES)[:, 0])
    with pytest.raises(ConfigError, match="has 2 contexts"):
        fastdps.load(run.path)


def test_one_context_needs_no_choice(tmp_path):
    PerceptualMetric(Backbone("alexnet"), random_weights(1), RANKINGS[:1]).save(tmp_path / "one.safetensors")
    assert fastdps.load(tmp_path / "one.safetensors").context == RANKINGS[0]
    PerceptualMetric(Backbone("alexnet"), random_weights(1)).save(tmp_path / "judged.safetensors")
    assert fastdps.load(tmp_path / "judged.safetensors").context is None
    with pytest.raises(ConfigError, match="adapted to judgements and has no contexts"):
        fastdps.load(tmp_path / "judged.safetensors", RANKINGS[0])


def test_a_backbone_is_the_unadapted_metric():
    m = fastdps.load("alexnet")
    assert m.context is None
    assert torch.allclose(m(*IMAGES), PerceptualMetric(Backbone("alexnet"), torch.ones(1, 1152))(*IMAGES)[:, 0])
    with pytest.raises(ConfigError, match="alexnet is a backbone that is not adapted"):
        fastdps.load("alexnet", RANKINGS[0])


@pytest.mark.parametrize(
    ("name", "net", "backbone"),
    [("lpips", "alex", "alexnet"), ("lpips/vgg", "vgg", "vgg16")],
)
@torch.no_grad()
def test_the_published_lpips(name, net, backbone, weights_dir):
    oracle = lpips_oracle(net, load_file(weights_dir / f"{backbone}_features.safetensors"))
    x, y = IMAGES[0][:2], torch.stack([IMAGES[1, 0], IMAGES[0, 1].lerp(IMAGES[1, 1], 0.05)])
    assert torch.allclose(fastdps.load(name)(x, y), oracle(x, y, normalize=True).flatten(), atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match=f"{name} has its published heads: it has no contexts"):
        fastdps.load(name, RANKINGS[0])


def test_the_published_lpips_without_its_package(monkeypatch):
    monkeypatch.setattr(published, "find_spec", lambda _: None)
    with pytest.raises(FastDPSError, match=r"lpips/vgg needs the package lpips.*pip install lpips==0\.1\.4"):
        fastdps.load("lpips/vgg")


def test_several_contexts_and_none_chosen(run):
    with pytest.raises(ConfigError) as raised:
        fastdps.load(run.path)
    message = str(raised.value)
    assert f"has {len(RANKINGS)} contexts. Choose one" in message
    assert "; ".join(",".join(ranking) for ranking in RANKINGS[:3]) in message
    assert f"--context {','.join(RANKINGS[0])}" in message


def test_a_context_that_the_run_has_not(run):
    first, second, *others = RANKINGS[2]
    with pytest.raises(ConfigError) as raised:
        fastdps.load(run.path, [second, first, *others])
    listed = str(raised.value).partition("The nearest of its")[2]
    assert listed.index(",".join(RANKINGS[2])) < listed.index(";")  # the one with one swap comes first


def test_mistyped_names_are_corrected(run, tmp_path):
    with pytest.raises(ConfigError, match=r"Unknown distortion 'colour' .* Did you mean 'color'\?"):
        fastdps.load(run.path, "colour,rotate,translate,darken,blur,zoom_in")
    with pytest.raises(ConfigError, match=r"lacks zoom_in"):
        fastdps.load(run.path, "color,rotate,translate,darken,blur")
    with pytest.raises(ConfigError, match=r"alexnt is not a run, .* Did you mean 'alexnet'\?"):
        fastdps.load("alexnt")
    with pytest.raises(ConfigError, match=r"rnu is not a run.* Did you mean '.*/run'\?"):
        fastdps.load(tmp_path / "rnu")


def test_a_directory_that_is_not_a_run(tmp_path):
    with pytest.raises(FastDPSError, match=r"is not a run: it has no config\.json"):
        fastdps.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FastDPSError, match=r"metric\.safetensors does not exist"):
        fastdps.load(tmp_path)


def test_other_distortions_than_ours(tmp_path):
    """A metric file names its own distortions, which may differ from the six."""
    rankings = list(itertools.permutations(["hue", "noise", "crop"]))
    PerceptualMetric(Backbone("alexnet"), random_weights(6), rankings).save(tmp_path / "m.safetensors")
    assert fastdps.load(tmp_path / "m.safetensors", "crop,noise,hue").context == ("crop", "noise", "hue")
