"""Heads from and to the `lpips` package: equal distances and scores, and rejection of unknown content."""

import warnings
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from fastdps.errors import ConfigError, FastDPSError
from fastdps.evaluation.judgements import score_judgements
from fastdps.evaluation.options import EvaluationOptions
from fastdps.metric.backbones import Backbone
from fastdps.metric.lpips_format import heads_from_lpips, heads_to_lpips
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.processes import join_processes
from helpers.judged_sets import real_pairs, real_triplets, write_judged
from helpers.lpips_oracle import lpips_oracle

SHIPPED = Path(lpips.__file__).parent / "weights" / "v0.1"
ALEXNET = (64, 192, 384, 256, 256)


@pytest.fixture(scope="module")
def judged(tmp_path_factory, imagenet_sample, lpips_example):
    """The directory of a set with the structure of BAPPS, and its images and votes of triplets and pairs."""
    root = tmp_path_factory.mktemp("judged")
    triplets, pairs = real_triplets(imagenet_sample, lpips_example, 20), real_pairs(imagenet_sample, 20)
    write_judged(root / "2afc" / "val" / "traditional", "triplets", *triplets)
    write_judged(root / "jnd" / "val" / "traditional", "pairs", *pairs)
    return root, triplets, pairs


def lpips_module(**options) -> lpips.LPIPS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision and torch.load in ways that are deprecated
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False, **options)


def lpips_input(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, H, W, 3) as LPIPS takes them: (n, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


class LpipsData:
    """The data set over which `lpips` iterates to score it."""

    def __init__(self, **columns: torch.Tensor) -> None:
        self.columns = columns

    def load_data(self):
        return [self.columns]


@torch.no_grad()
def lpips_scores(oracle, triplets, pairs):
    """2AFC by the package's own function, JND by scikit-learn on its distances, and the distances of all images."""
    images, votes = triplets
    ref, p0, p1 = (lpips_input(images[:, view]) for view in range(3))
    two_afc, found = lpips.score_2afc_dataset(LpipsData(ref=ref, p0=p0, p1=p1, judge=torch.from_numpy(votes)), oracle)
    images, same = pairs
    d = oracle(*(lpips_input(images[:, view]) for view in range(2))).flatten().numpy()
    truth, weight = np.repeat([1, 0], len(same)), np.r_[same, 1 - same]
    jnd = average_precision_score(truth, -np.r_[d, d], sample_weight=weight)
    return two_afc, jnd, np.r_[found["d0s"], found["d1s"], d]


@torch.no_grad()
def our_distances(metric, triplets, pairs):
    both = [torch.from_numpy(images).permute(1, 0, 4, 2, 3).float() / 255 for images, _ in (triplets, pairs)]
    compared = [(both[0][0], both[0][1]), (both[0][0], both[0][2]), (both[1][0], both[1][1])]
    return np.concatenate([metric(x, y)[:, 0].numpy() for x, y in compared])


@pytest.mark.parametrize(
    ("net", "backbone"), [("alex", "alexnet"), pytest.param("vgg", "vgg16", marks=pytest.mark.slow)]
)
def test_shipped_heads_score_as_in_lpips(net, backbone, judged, weights_dir, monkeypatch):
    root, triplets, pairs = judged
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    oracle = lpips_oracle(net, load_file(weights_dir / f"{backbone}_features.safetensors"))
    two_afc, jnd, expected = lpips_scores(oracle, triplets, pairs)
    metric = PerceptualMetric(Backbone(backbone), heads_from_lpips(SHIPPED / f"{net}.pth"))
    assert np.abs(our_distances(metric, triplets, pairs) - expected).max() < 1e-5

    scores = score_judgements(
        PerceptualMetric(metric.backbone), [metric], root, join_processes(), EvaluationOptions(batch_size=16)
    ).to_dict()
    assert scores["2afc"]["traditional"]["adapted"] == pytest.approx(two_afc, abs=1e-7)
    assert scores["jnd"]["traditional"]["adapted"] == pytest.approx(jnd, abs=1e-7)
    before, after = ([scores[test]["traditional"][key] for test in ("2afc", "jnd")] for key in ("baseline", "adapted"))
    assert before != after  # otherwise the heads would not matter


def test_our_heads_measure_the_same_in_lpips(judged, weights_dir, monkeypatch, tmp_path):
    """Load a file as users of the package do; the package does not check keys, so this test does."""
    _, triplets, pairs = judged
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    weights = (torch.rand(2, sum(ALEXNET), generator=torch.Generator().manual_seed(0)) - 0.5).clamp_min(0)
    metric = PerceptualMetric(Backbone("alexnet"), weights)
    state = heads_to_lpips(metric.weights[1], metric.backbone.channels)
    torch.save(state, tmp_path / "ours.pth")
    oracle = lpips_module(model_path=str(tmp_path / "ours.pth"))
    oracle.net = lpips_oracle("alex", load_file(weights_dir / "alexnet_features.safetensors")).net
    loaded = torch.cat([lin.model[1].weight.flatten() for lin in oracle.lins])
    assert torch.equal(loaded, weights[1])
    oracle.lins.load_state_dict({key.removeprefix("lin"): value for key, value in state.items()}, strict=True)

    *_, expected = lpips_scores(oracle, triplets, pairs)
    ours = our_distances(PerceptualMetric(metric.backbone, weights[1:]), triplets, pairs)
    assert np.abs(ours - expected).max() < 1e-5


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_there_and_back(net):
    shipped = torch.load(SHIPPED / f"{net}.pth", map_location="cpu", weights_only=True)
    channels = [weight.shape[1] for weight in shipped.values()]
    weights = heads_from_lpips(shipped)
    state = heads_to_lpips(weights, channels)
    assert list(state) == list(shipped)
    assert all(torch.equal(state[key], shipped[key]) for key in shipped)
    state["lin0.model.1.weight"].zero_()  # a copy
    assert torch.equal(weights, heads_from_lpips(shipped))


def test_heads_are_taken_in_the_order_of_their_numbers():
    state = {f"lin{i}.model.1.weight": torch.full((1, 2, 1, 1), float(i)) for i in (10, *range(10))}
    assert heads_from_lpips(state).tolist() == [[float(i) for i in range(11) for _ in range(2)]]


def head(channels: int = 3, value: float = 1.0) -> torch.Tensor:
    return torch.full((1, channels, 1, 1), value)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "lacks the key lin0.model.1.weight: it has 0 heads"),
        ({"lin1.model.1.weight": head()}, "lacks the key lin0.model.1.weight"),
        ({"lin0.model.1.weight": head(), "lin2.model.1.weight": head()}, "lacks the key lin1.model.1.weight"),
        ({"lin0.model.0.weight": head()}, "use_dropout=False, which keeps random heads"),
        ({"lin0.model.1.weight": head(), "lin0.model.1.bias": head()}, r"has lin0.model.1.bias besides heads"),
        (
            {"lin0.model.1.weight": torch.ones(3)},
            r"lin0.model.1.weight of the state dict is not a float tensor \(1, C, 1, 1\)",
        ),
        ({"lin0.model.1.weight": [1.0]}, r"is not a float tensor \(1, C, 1, 1\)"),
        ({"lin0.model.1.weight": torch.ones(2, 3, 1, 1)}, r"has shape \(2, 3, 1, 1\), not \(1, C, 1, 1\)"),
        ({"lin0.model.1.weight": torch.ones(1, 3, 3, 3)}, r"has shape \(1, 3, 3, 3\), not \(1, C, 1, 1\)"),
        ({"lin0.model.1.weight": head(value=-0.1)}, "has weights that are not all at least 0"),
        ({"lin0.model.1.weight": head(value=float("nan"))}, "has weights that are not all finite"),
    ],
)
def test_invalid_heads_are_rejected(state, message):
    with pytest.raises(FastDPSError, match=message):
        heads_from_lpips(state)


def test_a_full_lpips_is_rejected_and_its_heads_are_accepted():
    whole = lpips_module().state_dict()
    with pytest.raises(FastDPSError, match=r"scaling_layer.* and more besides heads.* It has a backbone"):
        heads_from_lpips(whole)
    heads = {key: value for key, value in whole.items() if key.startswith("lin") and not key.startswith("lins")}
    assert torch.equal(heads_from_lpips(heads), heads_from_lpips(SHIPPED / "alex.pth"))


def test_the_trap_of_use_dropout_is_caught(tmp_path):
    """The package loads its own shipped heads into an LPIPS without dropout, and they stay random."""
    torch.save({k: v for k, v in lpips_module(use_dropout=False).state_dict().items() if "model" in k}, tmp_path / "x")
    with pytest.raises(FastDPSError, match="use_dropout=False"):
        heads_from_lpips(tmp_path / "x")


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FastDPSError, match=r"heads\.pth does not exist"):
        heads_from_lpips(tmp_path / "heads.pth")
    (tmp_path / "heads.pth").write_bytes(b"no checkpoint")
    with pytest.raises(FastDPSError, match=r"heads\.pth cannot be read as a checkpoint"):
        heads_from_lpips(tmp_path / "heads.pth")
    (tmp_path / "heads.pth").write_bytes((SHIPPED / "alex.pth").read_bytes()[:3000])
    with pytest.raises(FastDPSError, match=r"heads\.pth cannot be read as a checkpoint"):
        heads_from_lpips(tmp_path / "heads.pth")
    torch.save(torch.ones(3), tmp_path / "heads.pth")
    with pytest.raises(FastDPSError, match=r"heads\.pth holds Tensor, not a state dict"):
        heads_from_lpips(tmp_path / "heads.pth")
    torch.save({"lin0.model.1.weight": torch.ones(3)}, tmp_path / "heads.pth")
    with pytest.raises(FastDPSError, match=r"lin0.model.1.weight of .*heads\.pth is not a float tensor"):
        heads_from_lpips(tmp_path / "heads.pth")


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"lin0.model.1.weight": Payload()}, tmp_path / "heads.pth")
    with pytest.raises(FastDPSError, match="cannot be read"):
        heads_from_lpips(tmp_path / "heads.pth")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2, 5), r"one context, not weights \(2, 5\)"),
        (torch.ones(5, 1), r"one context, not weights \(5, 1\)"),
        (torch.ones(6), "6 weights do not fit taps of 2, 3 channels"),
        (-torch.ones(5), "not all at least 0"),
        (torch.full((5,), torch.inf), "not all finite"),
    ],
)
def test_weights_that_lpips_cannot_represent_are_rejected(weights, message):
    with pytest.raises(ConfigError, match=message):
        heads_to_lpips(weights, (2, 3))
