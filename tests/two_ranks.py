"""Started by `test_two_processes` on every rank: train, and leave what this rank saw and ended with."""

import argparse
import sys
from pathlib import Path

import torch

from fastdps import train
from fastdps.loading import ShardLoader

out = Path(sys.argv[1])
parser = argparse.ArgumentParser()
train.add_arguments(parser)

seen: dict[int, list[int]] = {}
trained = []
original_epoch, original_train = ShardLoader.epoch, train.train


def recording_epoch(self, epoch, *args):
    for batch in original_epoch(self, epoch, *args):
        seen.setdefault(epoch, []).extend(batch.ids.tolist())
        yield batch


def recording_train(config, rankings, loader, accelerator, run):
    metric = original_train(config, rankings, loader, accelerator, run)
    assert accelerator.num_processes == 2
    torch.save({"ids": seen, "weights": metric.weights}, out / f"rank{accelerator.process_index}.pt")
    trained.append(metric)
    return metric


ShardLoader.epoch = recording_epoch
train.train = recording_train
train.run_train(parser.parse_args(sys.argv[2:]))
