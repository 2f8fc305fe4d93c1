"""A program for `test_two_processes_score_as_one`, run on every rank: score judged sets, and save the scores."""

import json
import sys
from pathlib import Path

import torch

from fastdps.evaluation.judgements import score_judgements
from fastdps.evaluation.options import EvaluationOptions
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.processes import join_processes

sets, out, heads = (Path(argument) for argument in sys.argv[1:])
with join_processes() as processes:
    assert processes.num_processes == 2
    backbone = Backbone("alexnet")
    metrics = [PerceptualMetric(backbone, weights) for weights in (None, torch.load(heads))]
    scores = score_judgements(metrics[0], metrics[1:], sets, processes, EvaluationOptions(batch_size=2))
    (out / f"rank{processes.process_index}.json").write_text(json.dumps(scores.to_dict()))
