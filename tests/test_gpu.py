"""The same code with another device name: CUDA against the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdps.contexts.distortions import NAMES, apply_plan, draw_plan, make_views
from fastdps.contexts.rankings import sample_rankings
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric, frozen_moments
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.runtime.stages import StageClock, stage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
RANKINGS = ";".join(",".join(ranking) for ranking in sample_rankings(3, NAMES, seed=3))


@pytest.fixture(scope="module")
def leaves(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(160, 64, seed=1), out, PackOptions(holdout=0.25), workers=1)
    return out


def images(n: int) -> torch.Tensor:
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)


def test_a_plan_is_the_same_on_both():
    ids = torch.arange(1000)
    assert torch.equal(draw_plan(ids, seed=1, epoch=2).values, draw_plan(ids.cuda(), seed=1, epoch=2).values.cpu())


def test_distortions_agree():
    plan = draw_plan(torch.arange(32), seed=1, epoch=0)
    on_cpu = apply_plan(images(32), plan)
    on_gpu = apply_plan(images(32).cuda(), plan.to("cuda")).cpu()
    for d, name in enumerate(NAMES):
        difference = (on_cpu[:, d] - on_gpu[:, d]).abs()
        if name in ("darken", "color", "blur"):
            assert difference.max() < 1e-4, name
        else:
            assert (difference.amax(dim=1) < 1e-4).float().mean() >= 0.98, name


def test_moments_agree_to_the_precision_of_bfloat16():
    views = make_views(images(8), draw_plan(torch.arange(8), seed=1, epoch=0))
    metric = PerceptualMetric(Backbone("alexnet", pretrained=False))
    on_cpu = frozen_moments(metric, views).mean.sum(-1)
    on_gpu = frozen_moments(metric.cuda(), views.cuda()).mean.sum(-1).cpu()
    assert (on_gpu / on_cpu - 1).abs().max() < 0.03


@pytest.mark.parametrize("variant", ["lin", "tune"])
def test_a_run_scores_as_on_the_cpu(leaves, tmp_path, weights_dir, variant):
    accuracies = []
    for devices in ("0", ""):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": devices, "FASTDPS_WEIGHTS": str(weights_dir)}
        out = tmp_path / f"devices{devices}"
        train = ["--shards", str(leaves / "train"), "--out", str(out), "--contexts", RANKINGS, "--variant", variant]
        for argv in (["train", *train, "--epochs", "5"], ["evaluate", str(out), "--shards", str(leaves / "val")]):
            command = [sys.executable, "-m", "fastdps", *argv, "--loader", "portable"]
            result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            assert result.returncode == 0, result.stderr
        accuracies.append(json.loads((out / "scores.json").read_text())["summary"]["adapted_accuracy"])
    assert abs(accuracies[0] - accuracies[1]) < 0.03


def test_a_stage_on_a_gpu_lasts_until_its_kernels_end():
    device = torch.device("cuda")
    matrix, clock = torch.rand(4096, 4096, device=device), StageClock(device)
    matrix @ matrix
    torch.cuda.synchronize()
    with clock.running():
        with stage("features"):
            for _ in range(50):
                matrix @ matrix
        with stage("heads"):
            pass
    seconds = clock.seconds()
    assert seconds["features"] > 10 * seconds["heads"]
