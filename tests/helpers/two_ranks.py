"""Started by `test_two_processes` on every rank: train, and leave what this rank saw and ended with."""

import argparse
import sys
from pathlib import Path

import torch

from fastdps.loading.loader import ShardLoader
from fastdps.training import run as train
from fastdps.training.loop import Training

out = Path(sys.argv[1])
parser = argparse.ArgumentParser()
train.add_arguments(parser)

seen: dict[int, list[int]] = {}
original_epoch, original_fit = ShardLoader.epoch, Training.fit


def recording_epoch(self, epoch, *args, **options):
    for batch in original_epoch(self, epoch, *args, **options):
        seen.setdefault(epoch, []).extend(batch.ids.tolist())
        yield batch


def recording_fit(self, *args):
    metric = original_fit(self, *args)
    assert self._processes.num_processes == 2
    torch.save({"ids": seen, "weights": metric.weights}, out / f"rank{self._processes.process_index}.pt")
    return metric


ShardLoader.epoch = recording_epoch
Training.fit = recording_fit
train.run_train(parser.parse_args(sys.argv[2:]))
