"""A program for `test_judged_steps`: save the gradients of a step on every rank, after the all-reduce."""

import sys
from pathlib import Path

import torch

from fastdps.contexts.judgements import judged_pairs
from fastdps.loading.loader import open_shards
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.processes import join_processes
from fastdps.shards.judgements import read_judgements
from fastdps.training.judged_batches import JudgedBatches
from fastdps.training.judged_task import JudgedTask
from fastdps.training.kept_images import KeptImages
from fastdps.training.recipes import get_recipe
from fastdps.training.step import Stepper


def main(location: str, out: str) -> None:
    """Save the gradients, and the sums of loss and accuracy over processes, of steps with and without dropout."""
    judged = judged_pairs(read_judgements(location))
    kept = KeptImages(open_shards(location, batch_size=50, seed=None), judged.ids)
    with join_processes() as processes:
        rank, world = processes.process_index, processes.num_processes
        batches = JudgedBatches(judged, kept, most_images=7, seed=0, rank=rank, world_size=world)
        for dropout in (0.0, 0.5):
            config = get_recipe("judgements", {"variant": "tune", "dropout": dropout})
            stepper = Stepper(config, JudgedTask(), PerceptualMetric(Backbone("alexnet", pretrained=False)), processes)
            found: dict[str, torch.Tensor] = {}

            def keep(optimizer, *_, found=found):
                parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
                found.update({str(number): parameter.grad.clone() for number, parameter in enumerate(parameters)})

            stepper.optimizer.register_step_pre_hook(keep)
            loss, accuracy = stepper.step(next(batches.epoch(0)), 0, 0)
            found["sums"] = processes.reduce(torch.stack([loss.sum(), accuracy.sum()]))
            torch.save(found, Path(out) / f"{dropout}-{world}-{rank}.pt")


main(*sys.argv[1:])
