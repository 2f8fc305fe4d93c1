"""Adapt a metric: the training loop, for one process or many.

    loader --> batch --> moments of seven views (frozen, `extraction`) --> heads, judge, loss (`trainee`) --> step

Start it as `fastdps train`, `python -m fastdps.train` or `accelerate launch -m fastdps.train`.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator

from fastdps.backbones import BACKBONES, Backbone
from fastdps.contexts import Ranking, pairs, select_rankings
from fastdps.distortions import NAMES, draw_plan
from fastdps.errors import run_command
from fastdps.extraction import extract_moments
from fastdps.heads import Heads
from fastdps.loading import LoaderName, ShardLoader, open_shards
from fastdps.meter import Meter
from fastdps.metric import PerceptualMetric
from fastdps.processes import join_processes
from fastdps.recipes import RECIPES, Interpolation, JudgeName, LossName, TrainConfig, Variant, get_recipe
from fastdps.report.live import training_display
from fastdps.runs import Run, write_json
from fastdps.trainee import Trainee, dropout_generator, learning_rate_at

#: Steps between two log lines; values on the device are read only then.
LOG_EVERY = 20
#: Settings of a recipe that have an option of their own.
OVERRIDES = "variant", "backbone", "judge", "loss", "epochs", "batch_size", "learning_rate", "interpolation", "seed"


def train(
    config: TrainConfig,
    rankings: Sequence[Ranking],
    loader: ShardLoader,
    accelerator: Accelerator,
    run: Run,
) -> PerceptualMetric:
    """Train the heads of all rankings at once; returns the adapted metric, the same on every process.

    The main process shows every log line and appends it to the log of `run`. With variant `baseline` nothing is
    trained. Raises what the loader raises, and `WeightsNotFoundError` without backbone weights.
    """
    with accelerator.local_main_process_first():  # one process of a node downloads weights, the others find them
        metric = PerceptualMetric(Backbone(config.backbone), rankings=rankings).to(accelerator.device)
    if config.variant == "lin":
        metric.weights = _train_heads(config, metric, loader, accelerator, run)
    return metric


def _train_heads(
    config: TrainConfig, metric: PerceptualMetric, loader: ShardLoader, accelerator: Accelerator, run: Run
) -> torch.Tensor:
    contexts, channels = metric.weights.shape
    trainee: Any = Trainee(config, metric.rankings, channels).to(accelerator.device)
    heads: Heads = trainee.heads
    optimizer: Any = torch.optim.Adam(
        trainee.parameters(), lr=config.learning_rate, betas=config.adam_betas, fused=True
    )
    trainee, optimizer = accelerator.prepare(trainee, optimizer)
    steps = config.epochs * loader.steps
    start_meter = partial(Meter.start, accelerator.device, triplets_per_image=len(pairs(len(NAMES))) * contexts)
    whole, recent = start_meter(), start_meter()
    with training_display(steps=steps, epochs=config.epochs, enabled=accelerator.is_main_process) as show:
        for step in range(steps):
            epoch, batch_number = divmod(step, loader.steps)
            if batch_number == 0:
                batches = loader.epoch(epoch)
            asked_s = time.perf_counter()
            batch = next(batches)
            wait_s = time.perf_counter() - asked_s

            plan = draw_plan(batch.ids, seed=config.seed, epoch=epoch)
            moments = extract_moments(metric, batch.images, plan, interpolation=config.interpolation)
            noise = dropout_generator(config.seed, step, accelerator.process_index, accelerator.device)
            loss, accuracy = trainee(moments.mean, moments.var, noise)
            # Gradients are averaged over processes; weighted so, the average is that of the whole batch however its
            # samples are spread. Contexts are summed, so that each learns as if it were alone.
            accelerator.backward(loss.sum() * (accelerator.num_processes / batch.global_size))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(config, step, steps)
            optimizer.step()
            optimizer.zero_grad()
            heads.project_()
            for meter in (whole, recent):
                meter.add(loss, accuracy, batch, wait_s)
            if (step + 1) % LOG_EVERY == 0 or batch_number == loader.steps - 1:
                rate = optimizer.param_groups[0]["lr"]
                record = {"event": "step", "epoch": epoch + 1, "step": step + 1, "learning_rate": rate}
                record |= recent.read(accelerator)
                recent = start_meter()
                show(record)
                if accelerator.is_main_process:
                    run.append_log(record)
    if accelerator.is_main_process:
        run.append_log({"event": "end", "processes": accelerator.num_processes, **whole.rates()})
    return heads.weights.detach().clone()


def describe(config: TrainConfig, rankings: Sequence[Ranking], shards: Path, loader: ShardLoader) -> dict[str, Any]:
    """The content of `config.json`: what was trained on what, with which versions on which machine."""
    return {
        "config": config.to_json(),
        "rankings": rankings,
        "data": {"shards": str(shards), "samples": loader.samples, "source": loader.manifest.source},
        "versions": {name: version(name) for name in ("fastdps", "torch", "kornia", "accelerate")},
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps train`; those whose default is None keep the recipe's value."""
    parser.add_argument("--shards", type=Path, required=True, help="shard set of images to train on")
    parser.add_argument("--out", type=Path, required=True, help="run directory to make")
    parser.add_argument(
        "--contexts",
        default="all",
        help='"all", a number of contexts to draw, or rankings "a,b,c,d,e,f", least disruptive first, separated by ";"',
    )
    parser.add_argument("--recipe", default="fast", choices=sorted(RECIPES), help="named settings (default: fast)")
    parser.add_argument("--variant", choices=get_args(Variant), help="what is trained: baseline (nothing), lin (heads)")
    parser.add_argument("--backbone", choices=sorted(BACKBONES))
    parser.add_argument("--judge", choices=get_args(JudgeName))
    parser.add_argument("--loss", choices=get_args(LossName), help="what the judge is trained with")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, help="images per step, over all processes")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--interpolation", choices=get_args(Interpolation), help="of the geometric distortions")
    parser.add_argument("--seed", type=int, help="of everything that is drawn: contexts, order, distortions, dropout")
    parser.add_argument("--size", type=int, help="resize images to a square of this many pixels while loading")
    parser.add_argument("--loader", choices=get_args(LoaderName), default="auto")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out already holds")


def run_train(arguments: argparse.Namespace) -> None:
    """What `fastdps train` does with its options."""
    config = get_recipe(arguments.recipe, {name: getattr(arguments, name) for name in OVERRIDES})
    rankings = select_rankings(arguments.contexts, NAMES, config.seed)
    accelerator = join_processes()
    run = Run(arguments.out)
    loader = open_shards(
        arguments.shards,
        batch_size=math.ceil(config.batch_size / accelerator.num_processes),
        device=accelerator.device,
        seed=config.seed,
        size=arguments.size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        loader=arguments.loader,
        components=["image"],
    )
    if accelerator.is_main_process:
        run.create(overwrite=arguments.overwrite)
        write_json(run.config, describe(config, rankings, arguments.shards, loader))
    metric = train(config, rankings, loader, accelerator, run)
    if accelerator.is_main_process:
        metric.save(run.metric)
        print(f"Adapted to {len(rankings)} contexts: {run.metric}")
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m fastdps.train`."""
    parser = argparse.ArgumentParser(prog="fastdps train", description="Adapt a perceptual metric to contexts.")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run_train(arguments))


if __name__ == "__main__":
    sys.exit(main())
