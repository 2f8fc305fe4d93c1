"""Scores of human judgement against direct computation, and what is said of sets that cannot be scored."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from fastdps.commands.tables import print_agreement
from fastdps.errors import FastDPSError, SampleError, ShardError
from fastdps.evaluation.judgements import SUBSETS, score_judgements
from fastdps.evaluation.options import EvaluationOptions
from fastdps.evaluation.run_scores import HumanAgreement
from fastdps.loading.options import LoadOptions
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.processes import join_processes
from helpers.judged_sets import noise_set, real_pairs, real_triplets, write_judged
from helpers.shard_sets import raw_samples, write_set
from helpers.warm_python import launch_warm

CONTEXTS = 3


@pytest.fixture
def processes():
    return join_processes()


@pytest.fixture(scope="module")
def untrained() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone("alexnet", pretrained=False)


@pytest.fixture(scope="module")
def baseline(untrained) -> PerceptualMetric:
    return PerceptualMetric(untrained)


@pytest.fixture(scope="module")
def adapted(untrained) -> PerceptualMetric:
    return PerceptualMetric(untrained, random_heads(CONTEXTS))


def random_heads(contexts: int, seed: int = 0) -> torch.Tensor:
    """Most channels off, so that contexts disagree."""
    uniform = torch.rand(contexts, 1152, generator=torch.Generator().manual_seed(seed))
    return (uniform - 0.95).clamp_min(0)


@pytest.fixture(scope="module")
def noise_sets(tmp_path_factory) -> Path:
    """All sub-sets of BAPPS, and one of another name, of a few random images each."""
    root = tmp_path_factory.mktemp("bapps")
    for number, name in enumerate([*SUBSETS, "another"]):
        noise_set(root / "2afc" / "val" / name, "triplets", 5 + number, seed=number)
    for number, name in enumerate(SUBSETS[:2]):
        noise_set(root / "jnd" / "val" / name, "pairs", 6 + number, seed=number)
    return root


@pytest.fixture(scope="module")
def few_sets(noise_sets, tmp_path_factory) -> Path:
    """One sub-set for each test."""
    root = tmp_path_factory.mktemp("few")
    for test in ("2afc", "jnd"):
        shutil.copytree(noise_sets / test / "val" / "cnn", root / test / "val" / "cnn")
    return root


def as_views(images: np.ndarray) -> torch.Tensor:
    """uint8 (n, views, H, W, 3) to float (views, n, 3, H, W)."""
    return torch.from_numpy(images).permute(1, 0, 4, 2, 3).float() / 255


@pytest.mark.parametrize("loader", ["dali", "portable"])
def test_scores_on_real_images(imagenet_sample, lpips_example, weights_dir, monkeypatch, tmp_path, processes, loader):
    """Against votes counted in a loop, and scikit-learn, on distances of single calls of the metric."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    triplets, votes = real_triplets(imagenet_sample, lpips_example, 23)
    pairs, same = real_pairs(imagenet_sample, 22)
    write_judged(tmp_path / "2afc" / "val" / "cnn", "triplets", triplets, votes)
    write_judged(tmp_path / "jnd" / "val" / "cnn", "pairs", pairs, same)
    metric = PerceptualMetric(Backbone("alexnet"), random_heads(CONTEXTS))
    baseline = PerceptualMetric(metric.backbone)
    scores = score_judgements(
        baseline, [metric], tmp_path, processes, EvaluationOptions(batch_size=7, loading=LoadOptions(loader=loader))
    ).to_dict()

    ref, p0, p1 = as_views(triplets)
    a, b = as_views(pairs)
    truth, weight = np.repeat([1, 0], len(same)), np.r_[same, 1 - same]

    def expected(contexts: PerceptualMetric) -> tuple[list[float], list[float]]:
        d0, d1, d = (contexts(x, y).numpy() for x, y in ((ref, p0), (ref, p1), (a, b)))
        agreeing = [
            sum(v if y < x else 1 - v if x < y else 0.5 for x, y, v in zip(*columns, votes, strict=True)) / len(votes)
            for columns in zip(d0.T, d1.T, strict=True)
        ]
        return agreeing, [average_precision_score(truth, -np.r_[c, c], sample_weight=weight) for c in d.T]

    for test, before, after in zip(("2afc", "jnd"), expected(baseline), expected(metric), strict=True):
        found = scores[test]["cnn"]
        assert found["baseline"] == pytest.approx(before[0], abs=1e-6)
        assert found["contexts"] == pytest.approx(after, abs=1e-6)
        assert found["adapted"] == pytest.approx(sum(after) / CONTEXTS, abs=1e-6)
        assert found["change"] == pytest.approx(found["adapted"] - found["baseline"], abs=1e-12)
        assert len({found["baseline"], *found["contexts"]}) == 1 + CONTEXTS  # or an equal score would prove little
    assert scores["2afc"]["cnn"]["samples"] == 23
    assert scores["jnd"]["cnn"]["samples"] == 22
    assert scores["2afc"]["cnn"]["human"] == pytest.approx(np.mean(votes**2 + (1 - votes) ** 2))
    assert scores["jnd"]["cnn"]["human"] is None


def test_all_contexts_in_one_pass(noise_sets, baseline, untrained, processes, monkeypatch):
    """720 contexts and the baseline: every image goes through the backbone once."""
    seen = []
    forward = untrained.forward
    monkeypatch.setattr(untrained, "forward", lambda images: seen.append(len(images)) or forward(images))
    metrics = [PerceptualMetric(untrained, random_heads(500)), PerceptualMetric(untrained, random_heads(220, seed=1))]
    scores = score_judgements(
        baseline, metrics, noise_sets / "2afc" / "val" / "cnn", processes, EvaluationOptions(batch_size=4)
    ).to_dict()
    assert len(scores["2afc"]["cnn"]["contexts"]) == 720
    assert seen == [12, 6]  # 6 triplets


def test_metrics_with_backbones_of_their_own_score_as_alone(few_sets, baseline, adapted, processes):
    other = PerceptualMetric(Backbone("alexnet", pretrained=False), random_heads(2, seed=1))
    together = score_judgements(
        baseline, [adapted, other], few_sets, processes, EvaluationOptions(batch_size=4)
    ).to_dict()
    alone = [
        score_judgements(before, [after], few_sets, processes, EvaluationOptions(batch_size=4)).to_dict()
        for before, after in ((baseline, adapted), (PerceptualMetric(other.backbone), other))
    ]
    for test in ("2afc", "jnd"):
        first, second = (one[test]["cnn"] for one in alone)
        assert together[test]["cnn"]["contexts"] == pytest.approx(first["contexts"] + second["contexts"], abs=1e-12)
        assert together[test]["cnn"]["baseline"] == first["baseline"]


def test_equal_weights_change_nothing(few_sets, baseline, untrained, processes):
    doubled = PerceptualMetric(untrained, torch.full((1, 1152), 2.0))
    scores = score_judgements(baseline, [doubled], few_sets, processes, EvaluationOptions(batch_size=4)).to_dict()
    assert all(one["change"] == 0 for test in ("2afc", "jnd") for one in scores[test].values())


def test_averages(noise_sets, baseline, adapted, processes):
    scores = score_judgements(baseline, [adapted], noise_sets, processes, EvaluationOptions(batch_size=4)).to_dict()
    assert list(scores) == ["2afc", "jnd", "averages"]
    assert list(scores["2afc"]) == [*SUBSETS, "another"]
    members = {
        "distort": ("2afc", ["traditional", "cnn"]),
        "real": ("2afc", ["superres", "deblur", "color", "frameinterp"]),
        "all": ("2afc", [*SUBSETS, "another"]),
        "jnd": ("jnd", ["traditional", "cnn"]),
    }
    assert list(scores["averages"]) == list(members)
    for name, (test, names) in members.items():
        average, parts = scores["averages"][name], [scores[test][one] for one in names]
        assert average["of"] == names
        assert average["samples"] == sum(part["samples"] for part in parts)
        for key in ("baseline", "adapted", "change", "contexts") + (("human",) if test == "2afc" else ()):
            assert np.allclose(average[key], np.mean([part[key] for part in parts], axis=0), atol=1e-12)
    assert scores["averages"]["jnd"]["human"] is None
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_an_average_that_lacks_a_subset_is_null(noise_sets, baseline, adapted, processes, tmp_path):
    for name in ("traditional", "cnn", "color"):
        shutil.copytree(noise_sets / "2afc" / "val" / name, tmp_path / "2afc" / "val" / name)
    (tmp_path / "2afc" / "val" / ".cache").mkdir()
    averages = score_judgements(baseline, [adapted], tmp_path, processes, EvaluationOptions(batch_size=4)).to_dict()[
        "averages"
    ]
    assert averages["distort"]["of"] == ["traditional", "cnn"]
    assert averages["real"] is None
    assert averages["all"]["of"] == ["traditional", "cnn", "color"]
    assert averages["jnd"] is None


@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_a_single_set_scores_as_it_does_among_others(few_sets, baseline, adapted, processes, test):
    single = score_judgements(
        baseline, [adapted], few_sets / test / "val" / "cnn", processes, EvaluationOptions(batch_size=4)
    ).to_dict()
    others = score_judgements(baseline, [adapted], few_sets, processes, EvaluationOptions(batch_size=4)).to_dict()
    assert single[test] == {"cnn": others[test]["cnn"]}
    assert single["2afc" if test == "jnd" else "jnd"] == {}


def test_nothing_to_score_is_explained(baseline, adapted, processes, noise_sets, tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere", noise_sets / "2afc"):
        with pytest.raises(ShardError, match=r"holds no packed.*2afc/val/SUBSET or jnd/val/SUBSET.*fastdps pack bapps"):
            score_judgements(baseline, [adapted], directory, processes, EvaluationOptions(batch_size=4))


def test_sets_of_another_kind_are_refused(baseline, adapted, processes, noise_sets, tmp_path):
    images = write_set(tmp_path / "images", raw_samples(3), (3,))
    with pytest.raises(ShardError, match="images is a set of images; human judgement needs triplets or pairs"):
        score_judgements(baseline, [adapted], images, processes, EvaluationOptions(batch_size=4))
    shutil.copytree(noise_sets / "jnd" / "val" / "cnn", tmp_path / "2afc" / "val" / "cnn")
    with pytest.raises(ShardError, match="cnn is a set of pairs; 2afc needs triplets"):
        score_judgements(baseline, [adapted], tmp_path, processes, EvaluationOptions(batch_size=4))


def test_an_unfinished_subset_is_no_reason_to_leave_it_out(baseline, adapted, processes, noise_sets, tmp_path):
    shutil.copytree(noise_sets / "2afc" / "val" / "cnn", tmp_path / "2afc" / "val" / "cnn")
    (tmp_path / "2afc" / "val" / "deblur").mkdir()
    with pytest.raises(ShardError, match="deblur is not a shard set"):
        score_judgements(baseline, [adapted], tmp_path, processes, EvaluationOptions(batch_size=4))


@pytest.mark.parametrize("test", ["2afc", "jnd"])
def test_a_metric_that_diverged_is_named(baseline, untrained, processes, noise_sets, test):
    diverged = PerceptualMetric(untrained, torch.full((1, 1152), torch.nan))
    with pytest.raises(FastDPSError, match=r"cnn the metric gives distances that are NaN or infinite"):
        score_judgements(
            baseline, [diverged], noise_sets / test / "val" / "cnn", processes, EvaluationOptions(batch_size=4)
        )


@pytest.mark.parametrize(("kind", "component"), [("triplets", "judge"), ("pairs", "same")])
@pytest.mark.parametrize("share", [-0.5, 2.0, np.nan])
def test_votes_that_are_no_share_are_named(baseline, adapted, processes, tmp_path, kind, component, share):
    images = np.zeros((5, 3 if kind == "triplets" else 2, 32, 32, 3), np.uint8)
    write_judged(tmp_path / "set", kind, images, np.array([0, 1, 1, share, 0]))
    with pytest.raises(SampleError, match=rf"sample 3 of .*set has {share} as {component}, not a share of votes"):
        score_judgements(baseline, [adapted], tmp_path / "set", processes, EvaluationOptions(batch_size=2))


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path, weights_dir, monkeypatch, processes):
    """Parts of unequal length, with an empty batch, and a set with fewer samples than processes."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    sets = tmp_path / "sets"
    noise_set(sets / "2afc" / "val" / "cnn", "triplets", 5)
    noise_set(sets / "jnd" / "val" / "cnn", "pairs", 13)
    noise_set(sets / "jnd" / "val" / "traditional", "pairs", 1)
    noise_set(sets / "2afc" / "val" / "color", "triplets", 1)
    torch.save(random_heads(CONTEXTS), tmp_path / "heads.pt")
    script = Path(__file__).parents[1] / "helpers" / "two_ranks_bapps.py"
    for result in launch_warm(2, script, sets, tmp_path, tmp_path / "heads.pt"):
        assert result.returncode == 0, result.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]

    backbone = Backbone("alexnet")
    adapted = PerceptualMetric(backbone, random_heads(CONTEXTS))
    one = score_judgements(
        PerceptualMetric(backbone), [adapted], sets, processes, EvaluationOptions(batch_size=4)
    ).to_dict()
    for test in ("2afc", "jnd"):
        for name, scores in one[test].items():
            for key in ("samples", "human", "baseline", "contexts"):
                assert ranks[0][test][name][key] == pytest.approx(scores[key], abs=1e-9)


def test_table(noise_sets, baseline, adapted, processes, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    scores = score_judgements(baseline, [adapted], noise_sets, processes, EvaluationOptions(batch_size=4)).to_dict()
    scores["2afc"]["traditional"]["samples"] = 56_600
    scores["averages"]["real"] = None
    print_agreement(HumanAgreement.from_dict(scores))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {line.split("│")[1].strip(): line.split() for line in lines if line.startswith("│")}
    judged = [f"2AFC {name}" for name in [*SUBSETS, "another"]]
    assert list(rows) == [
        *judged,
        "2AFC distort of 2",
        "2AFC all of 7",
        *(f"JND mAP {name}" for name in SUBSETS[:2]),
        "JND mAP mean of 2",
    ]
    cnn = scores["2afc"]["cnn"]
    figures = [cnn["human"], cnn["baseline"], cnn["adapted"], min(cnn["contexts"])]
    assert [cell for cell in rows["2AFC cnn"] if cell != "│"] == ["2AFC", "cnn", "6", *(f"{x:.4f}" for x in figures)]
    assert "56,600" in rows["2AFC traditional"]
