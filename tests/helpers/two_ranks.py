"""A program for `test_two_processes`, run on every rank: train, and save the sample ids and the final weights."""

import sys
from pathlib import Path

import torch

from fastdps.commands.cli import main
from fastdps.loading.loader import ShardLoader
from fastdps.training.loop import TrainingLoop

out = Path(sys.argv[1])

seen: dict[int, list[int]] = {}
original_epoch, original_fit = ShardLoader.epoch, TrainingLoop.fit


def recording_epoch(self, epoch, *args, **options):
    for batch in original_epoch(self, epoch, *args, **options):
        seen.setdefault(epoch, []).extend(batch.ids.tolist())
        yield batch


def recording_fit(self, *args, **options):
    metric = original_fit(self, *args, **options)
    assert self._processes.num_processes == 2
    torch.save({"ids": seen, "weights": metric.weights}, out / f"rank{self._processes.process_index}.pt")
    return metric


ShardLoader.epoch = recording_epoch
TrainingLoop.fit = recording_fit
sys.exit(main(["train", *sys.argv[2:]]))
