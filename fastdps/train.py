"""Adapt a metric: the command `fastdps train`, and with many processes `accelerate launch -m fastdps.train`."""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from accelerate import Accelerator

from fastdps.contexts import Ranking, select_rankings
from fastdps.distortions import NAMES
from fastdps.errors import ConfigError, run_command
from fastdps.files import write_json
from fastdps.loading import LoaderName, ShardLoader, open_shards
from fastdps.processes import Alone, Processes, join_processes
from fastdps.recipes import (
    RECIPES,
    Comparison,
    Interpolation,
    JudgeName,
    LossName,
    TrainConfig,
    Variant,
    get_recipe,
)
from fastdps.runs import Run
from fastdps.tasks import JudgementTask, RankingTask, Task
from fastdps.training import Training, Validation, build_metric
from fastdps.validation import VALIDATION_SEED

Parallel = Literal["data", "contexts"]

#: Settings of a recipe that have an option of their own.
OVERRIDES = (
    "variant",
    "backbone",
    "taps",
    "comparison",
    "judge",
    "loss",
    "epochs",
    "batch_size",
    "learning_rate",
    "backbone_learning_rate",
    "interpolation",
    "seed",
)


@dataclass(frozen=True)
class Data:
    """Where a run gets its samples from: a set of images, or of triplets if that is what it is adapted to."""

    shards: Path
    validation: Path | None = None
    size: int | None = None
    loader: LoaderName = "auto"

    def open(self, directory: Path, task: Task, config: TrainConfig, processes: Processes) -> ShardLoader:
        """The loader of one set for one process."""
        loader = open_shards(
            directory,
            batch_size=math.ceil(config.batch_size / processes.num_processes),
            device=processes.device,
            seed=config.seed,
            size=self.size,
            rank=processes.process_index,
            world_size=processes.num_processes,
            loader=self.loader,
        )
        if loader.manifest.kind != task.kind:
            raise ConfigError(f"{directory} is a set of {loader.manifest.kind}; what is asked for needs {task.kind}.")
        return loader


def train(
    config: TrainConfig,
    rankings: Sequence[Ranking],
    data: Data,
    accelerator: Accelerator,
    run: Run,
    *,
    parallel: Parallel = "data",
) -> None:
    """Adapt to all rankings, or without any to the judgements of a triplet set, and save what comes of it in `run`.

    Heads of all rankings are trained together. A trained backbone belongs to one ranking, so that these are trained
    one after another, each by all processes (`parallel` "data"), or each process trains its share of them alone
    ("contexts"). Raises what the loaders raise, and `WeightsNotFoundError` without backbone weights.
    """
    whole = RankingTask(rankings, config, accelerator.device) if rankings else JudgementTask(accelerator.device)
    tasks: list[Task] = [whole]
    if config.variant in ("tune", "scratch") and rankings:
        tasks = [RankingTask([ranking], config, accelerator.device) for ranking in rankings]
    processes: Processes = Alone(accelerator) if parallel == "contexts" else accelerator
    loader = data.open(data.shards, whole, config, processes)
    if accelerator.is_main_process:
        write_json(run.config, describe(config, rankings, data, loader))
    with accelerator.local_main_process_first():  # one process of a node downloads weights, the others find them
        metric = build_metric(config, tasks[0], accelerator.device)
    for number, task in enumerate(tasks):
        if parallel == "contexts" and number % accelerator.num_processes != accelerator.process_index:
            continue
        if number > 0:
            metric = build_metric(config, task, accelerator.device)
        if config.variant != "baseline":
            log = {"context": number} if len(tasks) > 1 else {}
            validation = _validation(config, task, data, processes)
            Training(config, task, metric, processes, run, log).fit(loader, validation)
        if processes.process_index == 0:
            path = run.metric if len(tasks) == 1 else run.metric_of(number)
            path.parent.mkdir(exist_ok=True)
            metric.save(path, include_backbone=config.variant in ("tune", "scratch"))
    accelerator.wait_for_everyone()


def _validation(config: TrainConfig, task: Task, data: Data, processes: Processes) -> Validation | None:
    if data.validation is None:
        return None
    other_draws = replace(config, seed=VALIDATION_SEED, pairs="all")
    if isinstance(task, RankingTask):
        task = RankingTask(task.rankings, other_draws, processes.device)
    return Validation(task, data.open(data.validation, task, config, processes))


def describe(config: TrainConfig, rankings: Sequence[Ranking], data: Data, loader: ShardLoader) -> dict[str, Any]:
    """The content of `config.json`: what was trained on what, with which versions on which machine."""
    return {
        "config": config.to_json(),
        "rankings": rankings,
        "data": {
            "shards": str(data.shards),
            "validation": None if data.validation is None else str(data.validation),
            "size": data.size,
            "samples": loader.samples,
            "source": loader.manifest.source,
        },
        "versions": {name: version(name) for name in ("fastdps", "torch", "kornia", "accelerate")},
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps train`; those whose default is None keep the recipe's value."""
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--shards", type=Path, help="shard set of images to train on")
    data.add_argument("--triplets", type=Path, help="shard set of judged triplets to adapt to, instead of contexts")
    parser.add_argument("--validation", type=Path, help="set of the same kind to choose the best epoch by")
    parser.add_argument("--out", type=Path, help="run directory to make")
    parser.add_argument(
        "--contexts",
        default="all",
        help='"all", a number of contexts to draw, or rankings "a,b,c,d,e,f", least disruptive first, separated by ";"',
    )
    parser.add_argument("--recipe", default="fast", choices=sorted(RECIPES), help="named settings (default: fast)")
    parser.add_argument(
        "--variant", choices=get_args(Variant), help="what is trained: nothing, heads, heads and backbone, all anew"
    )
    parser.add_argument("--backbone", help="a backbone of fastdps, or any torchvision model with --taps")
    parser.add_argument("--taps", type=_taps, metavar="N,N,...", help="sub-modules whose outputs are compared")
    parser.add_argument("--comparison", choices=get_args(Comparison))
    parser.add_argument("--judge", choices=get_args(JudgeName))
    parser.add_argument("--loss", choices=get_args(LossName), help="what the judge is trained with")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int, help="images per step, over all processes")
    parser.add_argument("--learning-rate", type=float, help="of heads and judges")
    parser.add_argument("--backbone-learning-rate", type=float)
    parser.add_argument("--interpolation", choices=get_args(Interpolation), help="of the geometric distortions")
    parser.add_argument("--seed", type=int, help="of everything that is drawn: contexts, order, distortions, dropout")
    parser.add_argument("--size", type=int, help="resize images to a square of this many pixels while loading")
    parser.add_argument("--loader", choices=get_args(LoaderName), default="auto")
    parser.add_argument(
        "--parallel",
        choices=get_args(Parallel),
        default="data",
        help="with tune and scratch: all processes on one context, or each on contexts of its own",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out already holds")
    parser.add_argument("--print-config", action="store_true", help="print the settings as JSON and end")


def _taps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def run_train(arguments: argparse.Namespace) -> None:
    """What `fastdps train` does with its options."""
    config = get_recipe(arguments.recipe, {name: getattr(arguments, name) for name in OVERRIDES})
    if arguments.print_config:
        print(json.dumps(config.to_json(), indent=1))
        return
    shards = arguments.shards or arguments.triplets
    if shards is None or arguments.out is None:
        raise ConfigError("--out and one of --shards and --triplets are needed.")
    rankings = select_rankings(arguments.contexts, NAMES, config.seed) if arguments.shards else []
    if arguments.parallel == "contexts" and not (rankings and config.variant in ("tune", "scratch")):
        raise ConfigError("--parallel contexts is for --variant tune and scratch on contexts; heads train all at once.")
    accelerator = join_processes()
    run = Run(arguments.out)
    if accelerator.is_main_process:
        run.create(overwrite=arguments.overwrite)
    data = Data(shards, arguments.validation, arguments.size, arguments.loader)
    train(config, rankings, data, accelerator, run, parallel=arguments.parallel)
    if accelerator.is_main_process:
        what = f"{len(rankings)} contexts" if rankings else "the judgements"
        print(f"Adapted to {what}: {run.path}")
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m fastdps.train`."""
    parser = argparse.ArgumentParser(prog="fastdps train", description="Adapt a perceptual metric to contexts.")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: run_train(arguments))


if __name__ == "__main__":
    sys.exit(main())
