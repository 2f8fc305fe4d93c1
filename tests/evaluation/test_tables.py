"""Counts, accuracies and the content of `scores.json`, against sums by hand."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import pytest
import scipy.stats
import torch

import fastdps.evaluation.tally as tally_module
import fastdps.loading.loader as loader_module
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import labels, sample_rankings
from fastdps.errors import ConfigError, FastDPSError
from fastdps.evaluation.options import EvaluationOptions
from fastdps.evaluation.run_scores import (
    ContextScore,
    HumanAgreement,
    PairAccuracy,
    RunScores,
    ScoreSummary,
    SubsetScores,
)
from fastdps.evaluation.tally import Tally, tally_choices
from fastdps.loading.options import LoadOptions
from fastdps.loading.spec import Batch
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_log import Throughput
from fastdps.runtime.processes import join_processes

RANKINGS = sample_rankings(3, NAMES, seed=4)
PAIRS = list(itertools.combinations(range(len(NAMES)), 2))
THROUGHPUT = Throughput(1.5, 2.5, 0.25)


def drawn_tally(judged: int = 7) -> Tally:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 2 * judged + 1, (2, len(PAIRS), len(RANKINGS)), generator=generator).double() / 2
    return Tally(counts[0], counts[1], labels(RANKINGS, NAMES).double(), judged)


def test_accuracies_are_means_of_the_counts():
    tally = drawn_tally()
    for counts, per_context, per_pair in zip(
        (tally.baseline, tally.adapted), tally.per_context(), tally.per_pair(), strict=True
    ):
        table = counts.tolist()
        by_context = [sum(row[k] for row in table) / (7 * 15) for k in range(3)]
        assert per_context.tolist() == pytest.approx(by_context)
        assert per_pair.tolist() == pytest.approx([sum(row) / (7 * 3) for row in table])


def test_the_accuracy_of_an_order_is_over_the_contexts_that_demand_it():
    tally = drawn_tally()
    expected = []
    for number, (i, j) in enumerate(PAIRS):
        for closer, farther in ((i, j), (j, i)):
            which = [k for k, r in enumerate(RANKINGS) if r.index(NAMES[closer]) < r.index(NAMES[farther])]
            if which:
                row = [NAMES[closer], NAMES[farther], len(which)]
                row += [
                    sum(c[number, k].item() for k in which) / (7 * len(which)) for c in (tally.baseline, tally.adapted)
                ]
                expected.append(row)
    found = tally.per_order()
    assert [list(row) for row in found] == [
        ["closer", "farther", "contexts", "baseline_accuracy", "adapted_accuracy"]
    ] * len(expected)
    for row, (closer, farther, contexts, baseline, adapted) in zip(found, expected, strict=True):
        assert (row["closer"], row["farther"], row["contexts"]) == (closer, farther, contexts)
        assert row["baseline_accuracy"] == pytest.approx(baseline)
        assert row["adapted_accuracy"] == pytest.approx(adapted)


class Loader:
    """A loader of given batches."""

    def __init__(self, *batches: Batch) -> None:
        self.batches, self.steps = batches, len(batches)
        self.samples = sum(map(len, batches))

    def epoch(self, number: int):
        assert number == 0
        return iter(self.batches)


def noise_batch(first: int, count: int) -> Batch:
    generator = torch.Generator().manual_seed(first)
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return Batch({"image": pixels}, torch.arange(first, first + count), count)


def test_a_tie_counts_half_and_an_equal_metric_agrees_as_often():
    """With zero weights all distances are equal; with the baseline's weights the counts are the baseline's."""
    backbone = Backbone("alexnet", taps=(1,), pretrained=False)
    baseline = PerceptualMetric(backbone)
    weights = torch.stack([torch.zeros(64), torch.ones(64), torch.ones(64)])
    loader = Loader(noise_batch(0, 2), noise_batch(5, 3))
    tally = tally_choices(baseline, [PerceptualMetric(backbone, weights, RANKINGS)], loader, join_processes(), draws=2)
    assert tally.judged == 10
    assert (tally.adapted[:, 0] == 5).all()
    assert torch.equal(tally.adapted[:, 1:], tally.baseline[:, 1:])
    assert torch.equal(tally.votes, labels(RANKINGS, NAMES).double())
    assert 0 < tally.baseline.mean() / 10 < 1
    assert (tally.baseline * 2 == (tally.baseline * 2).round()).all()


def test_the_contexts_of_several_metrics_follow_each_other(monkeypatch):
    seen = []
    views = tally_module.evaluation_views
    monkeypatch.setattr(tally_module, "evaluation_views", lambda *given: seen.append(given[1:]) or views(*given))
    backbone = Backbone("alexnet", taps=(1,), pretrained=False)
    baseline, loader = PerceptualMetric(backbone), Loader(noise_batch(0, 3))
    heads = torch.rand(3, 64, generator=torch.Generator().manual_seed(1)).sub(0.8).clamp_min(0)
    together = [PerceptualMetric(backbone, heads, RANKINGS)]
    apart = [PerceptualMetric(backbone, heads[k : k + 1], RANKINGS[k : k + 1]) for k in range(3)]
    one, other = (tally_choices(baseline, metrics, loader, join_processes(), draws=2) for metrics in (together, apart))
    assert torch.equal(one.adapted, other.adapted)
    assert torch.equal(one.baseline, other.baseline)
    tally_choices(baseline, apart, loader, join_processes(), draws=1, interpolation="bilinear")
    cpu = torch.device("cpu")
    assert seen == [(0, cpu, "nearest"), (1, cpu, "nearest")] * 2 + [(0, cpu, "bilinear")]


def test_intervals_are_over_images_as_by_scipy():
    """Choices of a plain loop, and `scipy.stats.t.interval` over the accuracy of each image."""
    backbone = Backbone("alexnet", taps=(1,), pretrained=False)
    baseline = PerceptualMetric(backbone)
    heads = torch.rand(3, 64, generator=torch.Generator().manual_seed(1)).sub(0.8).clamp_min(0)
    adapted = PerceptualMetric(backbone, heads, RANKINGS)
    batches = [noise_batch(0, 4), noise_batch(9, 3)]
    scores = FULL.with_contexts(
        RANKINGS, tally_choices(baseline, [adapted], Loader(*batches), join_processes(), draws=2)
    )
    correct = torch.zeros(2, 7, 3)
    votes, first = labels(RANKINGS, NAMES), 0
    for batch in batches:
        for draw in range(2):
            views = tally_module.evaluation_views(batch, draw, torch.device("cpu"), "nearest")
            d = tally_module.all_distances(baseline, [adapted], views)
            for n, k, (p, (i, j)) in itertools.product(range(len(batch)), range(3), enumerate(PAIRS)):
                for which, column in enumerate((0, 1 + k)):
                    chosen = float(d[n, i, column] > d[n, j, column])
                    correct[which, first + n, k] += chosen == votes[p, k]
        first += len(batch)
    accuracy = correct.double().numpy() / (2 * 15)
    for number, score in enumerate([*scores.contexts, scores.summary]):
        before, after = accuracy[:, :, number] if number < 3 else accuracy.mean(axis=2)
        for name, values in (("baseline", before), ("adapted", after), ("change", after - before)):
            found = getattr(score.intervals, name)
            low, high = scipy.stats.t.interval(0.95, 6, values.mean(), scipy.stats.sem(values))
            assert [found.value, found.low, found.high] == pytest.approx([values.mean(), low, high])
    assert scores.summary.adapted_accuracy == pytest.approx(scores.summary.intervals.adapted.value)
    assert RunScores.from_dict(json.loads(json.dumps(scores.to_dict()))) == dataclasses.replace(scores, pairs=())
    one = tally_choices(baseline, [adapted], Loader(noise_batch(0, 1)), join_processes(), draws=2)
    assert one.intervals() is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_diverged_is_an_error(value):
    backbone = Backbone("alexnet", taps=(1,), pretrained=False)
    metric = PerceptualMetric(backbone, torch.full((1, 64), value), RANKINGS[:1])
    with pytest.raises(FastDPSError, match="NaN or infinite: its training diverged"):
        tally_choices(PerceptualMetric(backbone), [metric], Loader(noise_batch(0, 1)), join_processes(), draws=1)


def subset(seed: int, *, human: float | None = 0.75, of: tuple[str, ...] = ()) -> SubsetScores:
    return SubsetScores(10 + seed, human, 0.5, 0.625, 0.125, (0.5, 0.75), of)


FULL = RunScores(
    "vgg16",
    "tune",
    "spatial+sort",
    "paper",
    THROUGHPUT,
    tuple(ContextScore(ranking, 0.25, 0.5) for ranking in RANKINGS),
    ScoreSummary(3, 1.0, 0.25, 0.5),
    HumanAgreement(
        {"cnn": subset(1)}, {"traditional": subset(2, human=None)}, {"all": subset(3, of=("cnn",)), "real": None}
    ),
)


@pytest.mark.parametrize(
    "scores",
    [
        FULL,
        dataclasses.replace(FULL, bapps=None),
        dataclasses.replace(FULL, contexts=(), summary=None),
        RunScores("alexnet", "lin", "spatial", "fast", THROUGHPUT),
    ],
)
def test_scores_are_read_back_as_they_were_written(scores):
    content = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert RunScores.from_dict(content) == scores
    assert RunScores.from_dict(content).to_dict() == scores.to_dict()


def test_the_content_of_scores_json():
    """The report and users' scripts read these keys."""
    content = FULL.to_dict()
    assert list(content) == [
        "backbone",
        "variant",
        "comparison",
        "recipe",
        "contexts",
        "summary",
        "bapps",
        "judgements",
        "throughput",
        "sets",
        "metrics",
    ]
    assert [content[key] for key in list(content)[:4]] == ["vgg16", "tune", "spatial+sort", "paper"]
    assert content["contexts"][0] == {
        "ranking": list(RANKINGS[0]),
        "baseline_accuracy": 0.25,
        "adapted_accuracy": 0.5,
    }
    assert content["summary"] == {
        "contexts": 3,
        "improved_fraction": 1.0,
        "baseline_accuracy": 0.25,
        "adapted_accuracy": 0.5,
    }
    assert list(content["bapps"]) == ["2afc", "jnd", "averages"]
    single = {"samples": 11, "human": 0.75, "baseline": 0.5, "adapted": 0.625, "change": 0.125, "contexts": [0.5, 0.75]}
    assert content["bapps"]["2afc"] == {"cnn": single}
    assert content["bapps"]["jnd"] == {"traditional": {**single, "samples": 12, "human": None}}
    assert content["bapps"]["averages"] == {"all": {**single, "samples": 13, "of": ["cnn"]}, "real": None}
    assert content["throughput"] == {"images_per_s": 1.5, "triplets_per_s": 2.5, "data_wait_fraction": 0.25}


def test_scores_of_contexts_are_those_of_the_tally():
    tally = drawn_tally()
    equal = dataclasses.replace(tally, adapted=tally.adapted.clone())
    equal.adapted[:, 1] = equal.baseline[:, 1]
    scores = FULL.with_contexts(RANKINGS, equal)
    before, after = (accuracy.tolist() for accuracy in equal.per_context())
    assert scores.contexts == tuple(ContextScore(*row) for row in zip(RANKINGS, before, after, strict=True))
    assert scores.summary == ScoreSummary(
        3,
        pytest.approx(sum(b < a for b, a in zip(before, after, strict=True)) / 3),
        pytest.approx(sum(before) / 3),
        pytest.approx(sum(after) / 3),
    )
    assert after[1] == before[1]  # no improvement
    names = [f"{NAMES[i]}, {NAMES[j]}" for i, j in PAIRS]
    values = (accuracy.tolist() for accuracy in equal.per_pair())
    assert scores.pairs == tuple(PairAccuracy(*row) for row in zip(names, *values, strict=True))
    assert (scores.bapps, scores.backbone) == (FULL.bapps, FULL.backbone)
    assert scores == dataclasses.replace(scores, pairs=())  # not part of scores.json


def test_the_pairs_of_a_call_are_not_written():
    scores = FULL.with_contexts(RANKINGS, drawn_tally())
    assert scores.pairs
    assert RunScores.from_dict(scores.to_dict()).pairs == ()


def test_options_of_scoring(monkeypatch):
    options = EvaluationOptions()
    assert (options.draws, options.batch_size, options.size, options.loading) == (5, 50, None, LoadOptions())
    assert EvaluationOptions(draws=1).draws == 1
    with pytest.raises(ConfigError, match="--draws must be at least 1, not 0"):
        EvaluationOptions(draws=0)


def test_a_set_is_opened_for_a_process_in_packed_order(monkeypatch):
    calls = []
    monkeypatch.setattr(loader_module, "open_shards", lambda *arguments, **options: calls.append((arguments, options)))
    processes = SimpleNamespace(device="cpu", process_index=2, num_processes=5)
    options = EvaluationOptions(batch_size=7, size=32, loading=LoadOptions(num_threads=3))
    options.open("shards", processes)
    ((arguments, found),) = calls
    assert arguments == ("shards",)
    assert found == {
        "batch_size": 7,
        "size": 32,
        "device": "cpu",
        "seed": None,
        "rank": 2,
        "world_size": 5,
        "options": options.loading,
    }
