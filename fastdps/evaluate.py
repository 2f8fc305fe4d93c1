"""Score a run on held-out images: baseline and adapted metric on the same distortions, all contexts in one pass."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from fastdps.contexts import labels, pairs
from fastdps.distortions import NAMES, Interpolation, draw_plan
from fastdps.errors import ConfigError
from fastdps.extraction import extract_moments
from fastdps.heads import distances
from fastdps.loading import LoaderName, ShardLoader, open_shards
from fastdps.metric import PerceptualMetric
from fastdps.processes import join_processes
from fastdps.recipes import TrainConfig, config_from_json
from fastdps.report.live import track
from fastdps.report.tables import print_scores
from fastdps.runs import Run, write_json
from fastdps.scores import agreement, improved, prefers_second

#: Seed of the held-out distortions, the same for every run so that their scores compare.
EVALUATION_SEED = 0x5EED_E7A1_0000_0001
#: Draws of all distortions per image.
DRAWS = 5


@dataclass(frozen=True)
class Tally:
    """How often the unadapted and the adapted metric chose as each context has it.

    `baseline` and `adapted` count choices per pair of distortions and context, (pairs, K) float64, ties as 0.5; each of
    their elements is out of `judged` choices. Counts are exact, so that equal metrics have equal accuracies.
    """

    baseline: Tensor
    adapted: Tensor
    judged: int

    def per_context(self) -> tuple[Tensor, Tensor]:
        """Baseline and adapted accuracy of each context, (K,) each."""
        choices = self.judged * len(self.adapted)
        return self.baseline.sum(dim=0) / choices, self.adapted.sum(dim=0) / choices

    def per_pair(self) -> tuple[Tensor, Tensor]:
        """Baseline and adapted accuracy on each pair of distortions, mean over contexts, (pairs,) each."""
        choices = self.judged * self.adapted.shape[1]
        return self.baseline.sum(dim=1) / choices, self.adapted.sum(dim=1) / choices


def tally_choices(
    metric: PerceptualMetric,
    loader: ShardLoader,
    accelerator: Accelerator,
    *,
    draws: int = DRAWS,
    interpolation: Interpolation = "nearest",
) -> Tally:
    """Let the metric choose over all images of a shard set and all processes.

    The distortions of draw d are those of epoch d of `EVALUATION_SEED`, so they are the same for every metric and run.
    """
    device = metric.weights.device
    first, second = pairs(len(NAMES)).to(device).unbind(dim=1)
    # The unadapted metric is one more context.
    weights = torch.cat([torch.ones_like(metric.weights[:1]), metric.weights])
    second_chosen = torch.zeros(len(first), len(weights), dtype=torch.float64, device=device)
    for batch in track(loader.epoch(0), total=loader.steps, what="scoring", enabled=accelerator.is_main_process):
        for draw in range(draws):
            plan = draw_plan(batch.ids, seed=EVALUATION_SEED, epoch=draw)
            d = distances(weights, extract_moments(metric, batch.images, plan, interpolation=interpolation).mean)
            second_chosen += prefers_second(d[:, first], d[:, second]).sum(dim=0, dtype=torch.float64)
    second_chosen = accelerator.reduce(second_chosen, reduction="sum").cpu()
    judged = loader.samples * draws
    votes = labels(metric.rankings, NAMES).double()
    baseline, adapted = (agreement(chosen, votes, of=judged) for chosen in (second_chosen[:, :1], second_chosen[:, 1:]))
    return Tally(baseline, adapted, judged)


def summarize(
    config: TrainConfig, metric: PerceptualMetric, tally: Tally, throughput: dict[str, Any]
) -> dict[str, Any]:
    """The content of `scores.json`."""
    baseline, adapted = tally.per_context()
    return {
        "backbone": config.backbone,
        "variant": config.variant,
        "comparison": "spatial",
        "recipe": config.recipe,
        "contexts": [
            {"ranking": list(ranking), "baseline_accuracy": before, "adapted_accuracy": after}
            for ranking, before, after in zip(metric.rankings, baseline.tolist(), adapted.tolist(), strict=True)
        ],
        "summary": {
            "contexts": len(metric.rankings),
            "improved_fraction": improved(baseline, adapted).double().mean().item(),
            "baseline_accuracy": baseline.mean().item(),
            "adapted_accuracy": adapted.mean().item(),
        },
        "bapps": None,
        "throughput": throughput,
    }


def training_throughput(run: Run) -> dict[str, Any]:
    """How fast the run was trained, from the end of its log; nulls where nothing was trained."""
    names = ("images_per_s", "triplets_per_s", "data_wait_fraction")
    ends = [record for record in run.read_log() if record["event"] == "end"]
    return {name: ends[-1][name] if ends else None for name in names}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps evaluate`."""
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--shards", type=Path, required=True, help="shard set of held-out images")
    parser.add_argument(
        "--draws", type=int, default=DRAWS, help=f"draws of all distortions per image (default {DRAWS})"
    )
    parser.add_argument("--batch-size", type=int, default=50, help="images per step and process (default 50)")
    parser.add_argument("--size", type=int, help="resize images to a square of this many pixels while loading")
    parser.add_argument("--loader", choices=get_args(LoaderName), default="auto")


def run_evaluate(arguments: argparse.Namespace) -> None:
    """What `fastdps evaluate` does with its options."""
    if arguments.draws < 1:
        raise ConfigError(f"--draws must be at least 1, not {arguments.draws}.")
    run = Run(arguments.run)
    config = config_from_json(run.read_config()["config"])
    accelerator = join_processes()
    with accelerator.local_main_process_first():
        metric = PerceptualMetric.load(run.metric).to(accelerator.device)
    loader = open_shards(
        arguments.shards,
        batch_size=arguments.batch_size,
        device=accelerator.device,
        shuffle=False,
        size=arguments.size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        loader=arguments.loader,
        components=["image"],
    )
    tally = tally_choices(metric, loader, accelerator, draws=arguments.draws, interpolation=config.interpolation)
    if accelerator.is_main_process:
        scores = summarize(config, metric, tally, training_throughput(run))
        write_json(run.scores, scores)
        pair_names = [f"{NAMES[i]}, {NAMES[j]}" for i, j in pairs(len(NAMES)).tolist()]
        before, after = (accuracy.tolist() for accuracy in tally.per_pair())
        print_scores(scores, list(zip(pair_names, before, after, strict=True)), run.scores)
    accelerator.end_training()
