"""Started by `test_two_processes_score_as_one` on every rank: score judged sets, and leave what this rank got."""

import json
import sys
from pathlib import Path

import torch

from fastdps.evaluation.judgements import score_bapps
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.processes import join_processes

sets, out, heads = (Path(argument) for argument in sys.argv[1:])
accelerator = join_processes()
assert accelerator.num_processes == 2
backbone = Backbone("alexnet")
metrics = [PerceptualMetric(backbone, weights) for weights in (None, torch.load(heads))]
scores = score_bapps(metrics[0], metrics[1:], sets, accelerator, batch_size=2)
(out / f"rank{accelerator.process_index}.json").write_text(json.dumps(scores))
accelerator.end_training()
