"""How well a shared backbone serves contexts and distortions that it was not trained on.

    contexts:    train on half of the 720 contexts --> heads alone for all --> accuracy of the seen and the unseen half
    distortions: train on the pairs of five distortions --> heads alone for all contexts --> accuracy on the pairs with
                 the sixth, beside that of heads on the pretrained backbone

    python -m bench.analyse.unseen contexts --shards shards/sample/train --held-out shards/sample/val
    python -m bench.analyse.unseen distortions --leave-out color blur ...

Results are in docs/choosing.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from fastdps.contexts.distortions import NAMES
from fastdps.contexts.interpolation import Interpolation
from fastdps.contexts.rankings import Ranking, all_rankings, pairs, sample_rankings
from fastdps.evaluation.tally import tally_choices
from fastdps.loading.loader import ShardLoader, open_shards
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from fastdps.runtime.processes import Distributed, join_processes
from fastdps.training.loop import TrainingLoop, build_metric
from fastdps.training.recipes import TrainConfig, get_recipe
from fastdps.training.tasks import RankingTask

#: Draws of the distortions per held-out image.
DRAWS = 5


@dataclass(frozen=True)
class Experiment:
    """What all trainings of an experiment have in common.

    Attributes:
        processes: The process.
        shards: The set to train on.
        held_out: The set to score on.
        shared: Settings of the shared backbone.
        heads: Settings of heads on a frozen backbone.
        size: Side in pixels of the held-out images.
    """

    processes: Distributed
    shards: Path
    held_out: Path
    shared: TrainConfig
    heads: TrainConfig
    size: int | None

    def train(self, config: TrainConfig, metric: PerceptualMetric, task: RankingTask) -> PerceptualMetric:
        """Train a metric, and return it."""
        loader = self._open(self.shards, config.seed)
        with tempfile.TemporaryDirectory() as directory:
            loop = TrainingLoop(config, task, metric, self.processes, RunDirectory(Path(directory)))
            return loop.fit(loader)

    def refit(self, metric: PerceptualMetric) -> PerceptualMetric:
        """Return heads of all contexts on the frozen backbone of a metric."""
        rankings = all_rankings(NAMES)
        fresh = PerceptualMetric(metric.backbone.requires_grad_(False), rankings=rankings)
        return self.train(self.heads, fresh, RankingTask(rankings, self.heads, self.processes.device))

    def tally(self, metric: PerceptualMetric, interpolation: Interpolation) -> tuple[Tensor, Tensor]:
        """Return the accuracy on each pair of distortions and context, adapted and with equal weights, (15, K)."""
        baseline = PerceptualMetric(metric.backbone)
        loader = open_shards(self.held_out, batch_size=50, size=self.size, seed=None)
        counts = tally_choices(baseline, [metric], loader, self.processes, draws=DRAWS, interpolation=interpolation)
        return counts.adapted / counts.judged, counts.baseline / counts.judged

    def _open(self, directory: Path, seed: int) -> ShardLoader:
        return open_shards(directory, batch_size=self.shared.batch_size, seed=seed)


class FivesTask(RankingTask):
    """Adapt to the order of five distortions: the pairs without the sixth."""

    def __init__(self, rankings: Sequence[Ranking], config: TrainConfig, device: torch.device, left_out: str) -> None:
        super().__init__(rankings, config, device)
        kept = ~involving(left_out).to(device)
        self._first, self._second, self._votes = self._first[kept], self._second[kept], self._votes[kept]


def involving(distortion: str) -> Tensor:
    """Return which of the 15 pairs a distortion takes part in, bool (15,)."""
    return (pairs(len(NAMES)) == NAMES.index(distortion)).any(dim=1)


def unseen_contexts(experiment: Experiment, interpolation: Interpolation) -> dict[str, float]:
    """Train on 360 contexts; return the mean accuracy of heads on these and on the others."""
    everything, device = all_rankings(NAMES), experiment.processes.device
    seen = sample_rankings(len(everything) // 2, NAMES, seed=experiment.shared.seed)
    config = experiment.shared
    metric = experiment.train(config, build_metric(config, seen, device), RankingTask(seen, config, device))
    accuracy = experiment.tally(experiment.refit(metric), interpolation)[0].mean(dim=0)
    is_seen = torch.tensor([ranking in set(seen) for ranking in everything])
    return {
        "trained heads, seen": experiment.tally(metric, interpolation)[0].mean().item(),
        "heads alone, seen": accuracy[is_seen].mean().item(),
        "heads alone, unseen": accuracy[~is_seen].mean().item(),
        "heads alone, unseen, worst": accuracy[~is_seen].min().item(),
    }


def unseen_distortion(experiment: Experiment, left_out: str, interpolation: Interpolation) -> dict[str, float]:
    """Train without one distortion; return the mean accuracy of heads on the pairs with and without it."""
    everything, device, config = all_rankings(NAMES), experiment.processes.device, experiment.shared
    task = FivesTask(everything, config, device, left_out)
    metric = experiment.train(config, build_metric(config, everything, device), task)
    trained = experiment.tally(experiment.refit(metric), interpolation)[0]
    pretrained = experiment.tally(experiment.refit(build_metric(config, everything, device)), interpolation)[0]
    with_it = involving(left_out)
    return {
        "pairs with it": trained[with_it].mean().item(),
        "other pairs": trained[~with_it].mean().item(),
        "pretrained backbone, pairs with it": pretrained[with_it].mean().item(),
        "pretrained backbone, other pairs": pretrained[~with_it].mean().item(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run an experiment, and print its result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.analyse.unseen", description=__doc__)
    parser.add_argument("what", choices=("contexts", "distortions"))
    parser.add_argument("--shards", type=Path, required=True, help="shard set to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="shard set to score on")
    parser.add_argument("--leave-out", nargs="+", choices=NAMES, default=list(NAMES), help="distortions, one by one")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the shared backbone")
    parser.add_argument("--head-epochs", type=int, default=10, help="epochs of heads alone")
    parser.add_argument("--crop-size", type=int, help="side of the crops, and of the held-out images")
    parser.add_argument(
        "--interpolation", choices=get_args(Interpolation), default="nearest", help="interpolation to score with"
    )
    given = parser.parse_args(argv)
    shared = get_recipe("shared", {"epochs": given.epochs, "crop_size": given.crop_size})
    heads = dataclasses.replace(shared, variant="lin", epochs=given.head_epochs, keep=0.0)
    with join_processes() as processes:
        experiment = Experiment(processes, given.shards, given.held_out, shared, heads, given.crop_size)
        if given.what == "contexts":
            print(json.dumps(unseen_contexts(experiment, given.interpolation), indent=1))
            return
        for distortion in given.leave_out:
            found = unseen_distortion(experiment, distortion, given.interpolation)
            print(json.dumps({"left out": distortion, **found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
