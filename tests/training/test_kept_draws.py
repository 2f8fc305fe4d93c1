"""Kept draws: the moments are those of the views, wherever they are kept and however many processes there are."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fastdps
from fastdps.commands import cli
from fastdps.contexts.distortions import NAMES, draw_plan, make_views, to_float
from fastdps.contexts.rankings import all_rankings, sample_rankings
from fastdps.errors import ConfigError
from fastdps.loading.loader import open_shards
from fastdps.metric.distances import Moments
from fastdps.metric.perceptual import frozen_moments
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.training.kept_draws import KeptDraws, batch_order, pays
from fastdps.training.loop import build_metric
from fastdps.training.model import TrainedModel
from fastdps.training.options import MomentLimits
from fastdps.training.recipes import fast, get_recipe
from fastdps.training.tasks import RankingTask
from helpers.warm_python import WarmProcess, launch_warm

CPU = torch.device("cpu")
RANKINGS = sample_rankings(3, NAMES, seed=3)
CONFIG = dataclasses.replace(fast(), draws_kept=2, batch_size=8, dropout=0.5)
#: Limits with which moments are kept in each place; images of 64 bytes x 16 always fit on the disk.
PLACES = {
    "memory": MomentLimits(),
    "disk": MomentLimits(memory_bytes=0),
    "computed": MomentLimits(memory_bytes=0, disk_bytes=100_000),
}


@pytest.fixture(scope="module")
def leaves(tmp_path_factory):
    """30 images: batches of 8 are four in an epoch, the last one short."""
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(30, 32, seed=1), out, PackOptions(size=32, samples_per_shard=11), workers=1)
    return out / "train"


@pytest.fixture(scope="module")
def metric(weights_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        return build_metric(CONFIG, RANKINGS, CPU)


def kept(leaves, metric, rank=0, world=1, config=CONFIG, **options):
    processes = SimpleNamespace(
        process_index=rank, num_processes=world, is_main_process=False, device=CPU, beat=lambda *_: None
    )
    loader = open_shards(leaves, batch_size=8, seed=None, rank=rank, world_size=world)
    return KeptDraws(RankingTask(RANKINGS, config, CPU), metric, loader, config, processes, **options)


@pytest.mark.parametrize(("samples", "batch_size"), [(30, 8), (560, 50), (100, 100), (7, 50), (1, 1)])
def test_each_sample_comes_once_in_an_epoch(samples, batch_size):
    order = batch_order(samples, batch_size, seed=1, epoch=2)
    assert sorted(order[order >= 0]) == list(range(samples))
    sizes = (order >= 0).sum(axis=1)
    assert (sizes[:-1] == min(batch_size, samples)).all()
    assert sizes[-1] > 0
    assert np.array_equal(order, batch_order(samples, batch_size, seed=1, epoch=2))
    if samples > batch_size:
        assert not np.array_equal(order, batch_order(samples, batch_size, seed=1, epoch=3))


def test_processes_have_equal_shares_of_each_batch():
    """The most that two of four processes differ by is one image for each end of their part."""
    for batch in batch_order(10_000, 64, seed=0, epoch=0)[:-1]:
        assert np.ptp(np.bincount(batch * 4 // 10_000, minlength=4)) <= 2


def test_keeping_pays_where_a_draw_is_used_twice():
    config = dataclasses.replace(CONFIG, epochs=3)
    assert pays(config, 30)
    assert not pays(dataclasses.replace(config, epochs=2), 30)
    assert not pays(dataclasses.replace(config, draws_kept=0), 30)
    assert pays(dataclasses.replace(config, max_steps=9), 30)
    assert not pays(dataclasses.replace(config, max_steps=8), 30)


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_an_epoch_has_the_moments_of_its_draw(leaves, metric, augment):
    """Epoch e has those of the views of epoch e modulo N, as they are without keeping."""
    config = dataclasses.replace(CONFIG, augment=augment)
    source = kept(leaves, metric, config=config)
    assert source.place == "memory"
    assert source.prepared_s > 0
    with_images = next(open_shards(leaves, batch_size=30, seed=None).epoch(0))
    images = dict(zip(with_images.ids.tolist(), with_images.images, strict=True))
    task = RankingTask(RANKINGS, config, CPU)
    for epoch in (0, 3):
        seen = Counter()
        for batch in source.epoch(epoch):
            seen.update(batch.ids.tolist())
            own = torch.stack([images[number] for number in batch.ids.tolist()])
            loaded = dataclasses.replace(with_images, components={"image": own}, ids=batch.ids)
            expected = frozen_moments(metric, task.views(loaded, epoch % 2))
            torch.testing.assert_close(batch.moments.mean, expected.mean, rtol=1e-3, atol=1e-9)
            torch.testing.assert_close(batch.moments.var.sqrt(), expected.var.sqrt(), rtol=1e-3, atol=1e-9)
        assert seen == Counter(images.keys())
    if augment == "none":  # the plan itself, of the last batch
        plan = draw_plan(batch.ids, seed=config.seed, epoch=1)
        again = frozen_moments(metric, make_views(to_float(own), plan, "nearest"))
        torch.testing.assert_close(batch.moments.mean, again.mean, rtol=1e-3, atol=1e-9)


def test_the_place_does_not_change_a_bit(leaves, metric, tmp_path):
    sources = {
        name: kept(leaves, metric, limits=dataclasses.replace(limits, directory=tmp_path))
        for name, limits in PLACES.items()
    }
    assert {name: source.place for name, source in sources.items()} == {name: name for name in PLACES}
    assert not list(tmp_path.iterdir())  # files have no name
    for batches in zip(*(source.epoch(1) for source in sources.values()), strict=True):
        for other in batches[1:]:
            assert torch.equal(other.ids, batches[0].ids)
            assert torch.equal(other.moments.mean, batches[0].moments.mean)
            assert torch.equal(other.moments.var, batches[0].moments.var)


def test_processes_divide_the_same_batches(leaves, metric):
    whole, parts = kept(leaves, metric), [kept(leaves, metric, rank, 3) for rank in range(3)]
    left = whole.left_after(1)
    assert left == parts[2].left_after(1) == [range(1, 4)]
    for batch, *own in zip(whole.epoch(5, left=left), *(part.epoch(5, left=left) for part in parts), strict=True):
        assert {part.global_size for part in own} == {len(batch)}
        together = torch.cat([part.moments.mean for part in own])
        ids = torch.cat([part.ids for part in own])
        assert torch.equal(together[ids.argsort()], batch.moments.mean[batch.ids.argsort()])


def test_what_exceeds_both_limits_is_refused(leaves, metric):
    with pytest.raises(ConfigError, match="Pass --draws-kept 0"):
        kept(leaves, metric, limits=MomentLimits(memory_bytes=0, disk_bytes=1000))


def test_variants_that_train_the_backbone_keep_nothing():
    with pytest.raises(ConfigError, match="the variant tune trains the backbone"):
        get_recipe("fast", {"variant": "tune", "draws_kept": 2})
    assert get_recipe("fast", {"variant": "tune"}).draws_kept == 0
    with pytest.raises(ConfigError, match="at least 0"):
        get_recipe("fast", {"draws_kept": -1})


@pytest.mark.slow
def test_two_processes_learn_the_same(leaves, tmp_path, monkeypatch, weights_dir):
    """Batches do not depend on the number of processes, and without dropout nothing else does."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    argv = ["--shards", str(leaves), "--contexts", "24", "--epochs", "6", "--batch-size", "8", "--draws-kept", "2"]
    program = os.path.join(os.path.dirname(fastdps.__file__), "train.py")
    for result in launch_warm(2, program, *argv, "--out", tmp_path / "two"):
        assert result.returncode == 0, result.stderr
    assert cli.main(["train", *argv, "--out", str(tmp_path / "one")]) == 0
    one, two = (load_file(tmp_path / name / "metric.safetensors")["weights"] for name in ("one", "two"))
    assert one.std() > 0.01
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_fused_loss_is_the_plain_one(dropout):
    """Loss, accuracy and gradients, with a tie."""
    config = dataclasses.replace(fast(), dropout=dropout)
    task = RankingTask(all_rankings(NAMES)[::9], config, CPU)
    mean, var = torch.rand(2, 30, 6, 20, generator=torch.Generator().manual_seed(0))
    mean[0, 1] = mean[0, 0]
    judgements = task.judgements(SimpleNamespace(ids=torch.arange(30)), 0)
    assert judgements.are_labels
    found = []
    for votes in (judgements, dataclasses.replace(judgements, are_labels=False)):
        model = TrainedModel(config, task.contexts, [20])
        result = model(Moments(mean, var), votes, torch.Generator().manual_seed(1))
        (result.loss * torch.linspace(0, 1, 30)[:, None]).sum().backward()
        found.append([result.loss, result.accuracy, *(p.grad for p in model.parameters())])
    for own, plain in zip(*found, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-6)


#: Trains by the command line, and dies at a call of a method.
DYING = """
import os, signal, sys
from fastdps.commands.cli import main
from fastdps.training.{module} import {owner} as Owner

original, calls = Owner.{method}, 0

def dying(self, *arguments):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *arguments)

Owner.{method} = dying
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_killed_run_resumes_to_the_same_bits(leaves, tmp_path, monkeypatch, weights_dir, place):
    """Kill -9 while draws are being kept, and at a step of a pass over them."""
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    argv = ["train", "--shards", str(leaves), "--contexts", "12", "--epochs", "5", "--batch-size", "8"]
    argv += ["--checkpoint-every", "3", *(["--moments-memory", "0"] if place == "disk" else [])]
    assert cli.main([*argv, "--out", str(tmp_path / "undisturbed")]) == 0
    expected = load_file(tmp_path / "undisturbed" / "metric.safetensors")["weights"]
    keeping = {"module": "kept_draws", "owner": "KeptDraws", "method": "_compute"}
    passing = {"module": "step", "owner": "Stepper", "method": "step"}
    points = [(keeping, 2), (passing, 2), (passing, 18)] if place == "memory" else [(keeping, 7), (passing, 8)]
    for number, (where, call) in enumerate(points):
        out = tmp_path / f"killed-{number}"
        with WarmProcess(["-c", DYING.format(**where, call=call), *argv, "--out", out]) as process:
            assert process.wait(600) == -signal.SIGKILL
        assert not (out / "metric.safetensors").exists()
        assert bool(list(out.glob("checkpoints/step-*"))) == (call > 2 and where is passing)
        assert cli.main([*argv, "--out", str(out)]) == 0
        assert torch.equal(load_file(out / "metric.safetensors")["weights"], expected)
