"""Adapt a metric: the command `fastdps train`, and with many processes `accelerate launch -m fastdps.training.run`."""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from fastdps.commands.options import Parser, add_cache, add_quiet, cache_from, location, run_command
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.interpolation import Interpolation
from fastdps.contexts.rankings import Ranking, select_rankings
from fastdps.errors import ConfigError
from fastdps.loading.loader import LoaderName, ShardLoader, open_shards
from fastdps.metric.precision import Precision, deterministic_algorithms
from fastdps.run_directory import RunDirectory
from fastdps.runtime.console import print_notice, print_result, quiet_mode
from fastdps.runtime.files import write_json
from fastdps.runtime.processes import STALLED_S, Alone, Processes, Together, join_processes, watch
from fastdps.shards.cache import Cache
from fastdps.shards.format import read_manifest
from fastdps.shards.storage import Location
from fastdps.training.best_epoch import VALIDATION_SEED
from fastdps.training.loop import Saving, Training, Validation, build_metric
from fastdps.training.recipes import (
    RECIPES,
    Comparison,
    JudgeName,
    LossName,
    TrainConfig,
    Variant,
    config_from_json,
    get_recipe,
)
from fastdps.training.step import Execution
from fastdps.training.tasks import JudgementTask, RankingTask, Task

Parallel = Literal["data", "contexts"]
Resume = Literal["auto", "never"]

#: Settings of a recipe that have an option of their own.
OVERRIDES = (
    "variant",
    "backbone",
    "taps",
    "comparison",
    "judge",
    "loss",
    "epochs",
    "max_steps",
    "batch_size",
    "learning_rate",
    "backbone_learning_rate",
    "interpolation",
    "seed",
)


@dataclass(frozen=True)
class Data:
    """Where a run gets its samples from: a set of images, or of triplets if that is what it is adapted to."""

    shards: Location
    validation: Location | None = None
    size: int | None = None
    loader: LoaderName = "auto"
    cache: Cache | None = None

    def open(self, directory: Location, task: Task, config: TrainConfig, processes: Processes) -> ShardLoader:
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
            cache=self.cache,
        )
        if loader.manifest.kind != task.kind:
            raise ConfigError(f"{directory} is a set of {loader.manifest.kind}; what is asked for needs {task.kind}.")
        return loader


def train(
    config: TrainConfig,
    rankings: Sequence[Ranking],
    data: Data,
    processes: Together,
    run: RunDirectory,
    *,
    parallel: Parallel = "data",
    execution: Execution | None = None,
    saving: Saving | None = None,
) -> None:
    """Adapt to all rankings, or without any to the judgements of a triplet set, and save what comes of it in `run`.

    Heads of all rankings are trained together. A trained backbone belongs to one ranking, so that these are trained
    one after another, each by all processes (`parallel` "data"), or each process trains its share of them alone
    ("contexts"). An interrupted run goes on from its checkpoints, and a finished one is left as it is.

    Raises `ConfigError` where the run was begun with other settings or data, what the loaders raise,
    `WeightsNotFoundError` without backbone weights, and what `Training.fit` raises.
    """
    whole = RankingTask(rankings, config, processes.device) if rankings else JudgementTask(processes.device)
    tasks: list[Task] = [whole]
    if config.variant in ("tune", "scratch") and rankings:
        tasks = [RankingTask([ranking], config, processes.device) for ranking in rankings]
    team: Processes = Alone(processes) if parallel == "contexts" else processes
    loader = data.open(data.shards, whole, config, team)
    processes.share(lambda: begin(run, describe(config, rankings, data, loader)))
    several = len(tasks) > 1
    paths = [run.metric_of(number) if several else run.metric for number in range(len(tasks))]
    left: list[int] = processes.share(lambda: [number for number, path in enumerate(paths) if not path.exists()])
    if not left:
        processes.say(f"{run.path} is finished: nothing to do. --overwrite trains anew.")
        return
    with processes.one_per_node_first():  # which downloads weights; the others find them
        metric = build_metric(config, tasks[left[0]], processes.device)
    for number in left:
        if parallel == "contexts" and number % processes.num_processes != processes.process_index:
            continue
        task, path = tasks[number], paths[number]
        if number != left[0]:
            metric = build_metric(config, task, processes.device)
        if config.variant != "baseline":
            context = number if several else None
            training = Training(config, task, metric, team, run, context=context, execution=execution, saving=saving)
            training.fit(loader, _validation(config, task, data, team))
        if team.process_index == 0:
            path.parent.mkdir(exist_ok=True)
            metric.save(path, include_backbone=config.variant in ("tune", "scratch"))
            if several:
                shutil.rmtree(run.checkpoints_of(number), ignore_errors=True)
    processes.wait_for_all()


def begin(run: RunDirectory, description: dict[str, Any]) -> None:
    """Write `config.json`; or see that a run that is there was begun with the same, and mend its log.

    Raises `ConfigError` that names what differs.
    """
    if not run.config.exists():
        write_json(run.config, description)
        return
    before, now = run.read_config(), json.loads(json.dumps(description))
    old, new = config_from_json(before["config"]).to_json(), description["config"]
    differing = [f"{name} was {old[name]} and is now {new[name]}" for name in new if old[name] != new[name]]
    if before["rankings"] != now["rankings"]:
        differing.append(f"there were {len(before['rankings'])} contexts, and not the same as now")
    old, new = before["data"], now["data"]
    names = [name for name in ("size", "sha256", "validation_sha256") if old.get(name) != new[name]]
    differing += [f"the data's {name} was {old.get(name)} and is now {new[name]}" for name in names]
    if differing:
        raise ConfigError(
            f"{run.path} holds a run with other settings: {'; '.join(differing)}. Choose another --out, or pass "
            "--overwrite to replace it."
        )
    run.repair_log()


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
            "sha256": loader.manifest.content_sha256(),
            "validation_sha256": None if data.validation is None else read_manifest(data.validation).content_sha256(),
        },
        "versions": {name: version(name) for name in ("fastdps", "torch", "kornia", "accelerate")},
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps train`; those whose default is None keep the recipe's value."""
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--shards", type=location, help="shard set of images to train on: a directory or a URL")
    data.add_argument("--triplets", type=location, help="shard set of judged triplets to adapt to, instead of contexts")
    parser.add_argument("--validation", type=location, help="set of the same kind to choose the best epoch by")
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
    parser.add_argument("--max-steps", type=int, metavar="N", help="end after so many steps, before --epochs are over")
    add_cache(parser)
    computing = parser.add_argument_group("how it is computed")
    computing.add_argument("--precision", choices=get_args(Precision), default="auto", help="of the backbone")
    computing.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="compute a step in N pieces, for want of memory"
    )
    computing.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=False, help="run the backbone through torch.compile"
    )
    computing.add_argument("--deterministic", action="store_true", help="the same bits every time, on GPUs too")
    saving = parser.add_argument_group("not losing work")
    saving.add_argument(
        "--resume",
        choices=get_args(Resume),
        default="auto",
        help="what to do where --out holds a run: go on with it, which is the default, or refuse",
    )
    saving.add_argument("--overwrite", action="store_true", help="replace the run that --out already holds")
    saving.add_argument("--checkpoint-every", type=int, default=Saving.every_steps, metavar="STEPS")
    saving.add_argument("--keep-checkpoints", type=int, default=Saving.keep, metavar="N", help="the last N stay")
    saving.add_argument(
        "--stall-timeout",
        type=float,
        default=STALLED_S,
        metavar="SECONDS",
        help=f"a process that is busy with one step for longer ends the job (default {STALLED_S:.0f})",
    )
    parser.add_argument(
        "--log-with",
        action="append",
        default=[],
        metavar="TRACKER",
        help="tensorboard, wandb or another tracker that Accelerate knows, besides log.jsonl; may be repeated",
    )
    add_quiet(parser)
    parser.add_argument("--print-config", action="store_true", help="print the settings as JSON and end")


def _taps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def run_train(arguments: argparse.Namespace) -> None:
    """What `fastdps train` does with its options. The same command again goes on, or finds that all is done."""
    config = get_recipe(arguments.recipe, {name: getattr(arguments, name) for name in OVERRIDES})
    if arguments.print_config:
        print(json.dumps(config.to_json(), indent=1))
        return
    shards = arguments.shards or arguments.triplets
    if shards is None or arguments.out is None:
        raise ConfigError("--out and one of --shards and --triplets are needed.")
    rankings = select_rankings(arguments.contexts, NAMES, config.seed) if arguments.shards else []
    if arguments.contexts == "all" and rankings and len(rankings) < (total := math.factorial(len(NAMES))):
        print_notice(f"{len(NAMES)} distortions have {total:,} contexts; {len(rankings)} of them are drawn")
    if arguments.parallel == "contexts" and not (rankings and config.variant in ("tune", "scratch")):
        raise ConfigError("--parallel contexts is for --variant tune and scratch on contexts; heads train all at once.")
    execution = Execution(arguments.precision, arguments.accumulate, arguments.compile)
    saving = Saving(arguments.checkpoint_every, arguments.keep_checkpoints)
    data = Data(shards, arguments.validation, arguments.size, arguments.loader, cache_from(arguments))
    run = RunDirectory(arguments.out)
    stalled_s = arguments.stall_timeout
    accelerator = join_processes(stalled_s=stalled_s, log_with=arguments.log_with, directory=run.path)
    with watch(accelerator, stalled_s) as heartbeat, deterministic_algorithms(arguments.deterministic):
        processes = Together(accelerator, heartbeat)
        if processes.share(lambda: run.create(overwrite=arguments.overwrite)) and arguments.resume == "never":
            raise ConfigError(
                f"{run.path} already holds a run. Choose another --out, pass --overwrite to replace it, or go on with "
                "--resume auto."
            )
        if arguments.log_with:
            accelerator.init_trackers("fastdps", config={key: str(value) for key, value in config.to_json().items()})
        train(config, rankings, data, processes, run, parallel=arguments.parallel, execution=execution, saving=saving)
        if processes.is_main_process:
            what = f"{len(rankings)} contexts" if rankings else "the judgements"
            print_result(f"Adapted to {what}: {run.path}")
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `python -m fastdps.training.run`."""
    parser = Parser(prog="fastdps train", description="Adapt a perceptual metric to contexts.")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    with quiet_mode(arguments.quiet):
        return run_command(lambda: run_train(arguments))


if __name__ == "__main__":
    sys.exit(main())
