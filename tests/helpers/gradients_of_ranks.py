"""A program for `test_processes`: save the gradients of one step on every rank, after the all-reduce."""

import sys
from pathlib import Path

import torch

from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.loading.loader import open_shards
from fastdps.runtime.processes import Distributed, join_processes
from fastdps.training.loop import build_metric
from fastdps.training.options import Execution
from fastdps.training.recipes import get_recipe
from fastdps.training.step import Stepper
from fastdps.training.tasks import RankingTask


def main(shards: str, out: str, *cases: str) -> None:
    """Save the gradients of each case, VARIANT:PIECES."""
    with join_processes() as processes:
        for case in cases:
            variant, pieces = case.split(":")
            found = gradients(shards, variant, int(pieces), processes)
            torch.save(found, Path(out) / f"{variant}-{processes.num_processes}-{processes.process_index}.pt")


def gradients(shards: str, variant: str, pieces: int, processes: Distributed) -> dict[str, torch.Tensor]:
    keep = 0.5 if variant == "shared" else 0.0
    config = get_recipe("fast", {"variant": variant, "dropout": 0.0, "augment": "crop", "keep": keep})
    task = RankingTask(sample_rankings(1 if variant == "tune" else 24, NAMES, seed=1), config, processes.device)
    metric = build_metric(config, task.rankings, processes.device)
    stepper = Stepper(config, task, metric, processes, Execution(accumulate=pieces))
    found: dict[str, torch.Tensor] = {}

    def keep(optimizer, *_):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found.update({str(number): parameter.grad.clone() for number, parameter in enumerate(parameters)})

    stepper.optimizer.register_step_pre_hook(keep)
    loader = open_shards(
        shards,
        batch_size=20 // processes.num_processes,
        rank=processes.process_index,
        world_size=processes.num_processes,
    )
    stepper.step(next(loader.epoch(0)), 0, 0)
    return found


main(*sys.argv[1:])
