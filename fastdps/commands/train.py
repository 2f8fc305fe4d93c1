"""`fastdps train`: adapt a metric; with several processes under `accelerate launch -m fastdps.train`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

from fastdps.commands.options import add_cache, add_quiet, byte_count, cache_from, is_main_rank, location
from fastdps.contexts.interpolation import Interpolation
from fastdps.errors import ConfigError
from fastdps.loading.loader import LoaderName, LoadOptions
from fastdps.metric.precision import Precision
from fastdps.runtime.console import print_result
from fastdps.runtime.processes import STALL_TIMEOUT_S
from fastdps.training.checkpoints import CheckpointPolicy
from fastdps.training.pair_moments import MomentLimits
from fastdps.training.recipes import (
    RECIPES,
    Augment,
    Comparison,
    JudgeName,
    LossName,
    Variant,
    default_recipe,
    get_recipe,
)
from fastdps.training.run import Parallel, Resume, TrainOptions, train
from fastdps.training.step import Execution

#: Settings of a recipe that have an option.
SETTINGS_WITH_OPTION = (
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
    "augment",
    "crop_size",
    "keep",
    "seed",
    "prior_strength",
    "by",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps train`. A setting that is not given keeps the value of the recipe."""
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--shards", type=location, help="shard set of images to train on: a directory or a URL")
    data.add_argument(
        "--judgements",
        type=location,
        metavar="DIR|FILE",
        help="judgement set, or a .csv, .jsonl or .parquet file of judgements, to adapt to instead of contexts",
    )
    data.add_argument("--triplets", type=location, help="shard set of judged triplets to adapt to (BAPPS)")
    parser.add_argument("--validation", type=location, help="set of the same kind to choose the best epoch by")
    parser.add_argument("--out", type=Path, help="run directory to create")
    parser.add_argument(
        "--contexts",
        help='"all" (the default), a number of contexts to draw, or rankings "a,b,c,d,e,f", least disruptive first, '
        'separated by ";"; with --by: names of judges, separated by ","',
    )
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        help="for judgements: each judge is a context, beside the pooled one of all; the column whose value is the "
        'judge, or "judge" for that of a judgement set',
    )
    _add_settings(parser)
    parser.add_argument("--size", type=int, help="resize images to a square of this many pixels while loading")
    parser.add_argument("--loader", choices=get_args(LoaderName), default="auto", help="how shards are read")
    parser.add_argument(
        "--parallel",
        choices=get_args(Parallel),
        default="data",
        help="with tune and scratch: all processes on one context, or each on contexts of its own",
    )
    add_cache(parser)
    _add_moments(parser)
    _add_execution(parser)
    _add_checkpoints(parser)
    parser.add_argument(
        "--log-with",
        action="append",
        default=[],
        metavar="TRACKER",
        help="log to tensorboard, wandb or another tracker of Accelerate as well as to log.jsonl; may be repeated",
    )
    add_quiet(parser)
    parser.add_argument("--print-config", action="store_true", help="print the settings as JSON and exit")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a recipe."""
    parser.add_argument(
        "--recipe",
        choices=sorted(RECIPES),
        help="named set of settings (default: fast; for --variant shared: shared; for --judgements: judgements)",
    )
    parser.add_argument(
        "--variant",
        choices=get_args(Variant),
        help="what is trained: baseline, nothing; lin, heads; shared, heads and one backbone for all contexts; tune, "
        "heads and a backbone for each context; scratch, the same from a random backbone",
    )
    parser.add_argument("--backbone", help="name of a backbone of fastdps, or of any torchvision model with --taps")
    parser.add_argument("--taps", type=_taps, metavar="N,N,...", help="sub-modules whose outputs are compared")
    parser.add_argument("--comparison", choices=get_args(Comparison), help="how features are compared")
    parser.add_argument("--judge", choices=get_args(JudgeName), help="maps two distances to a probability")
    parser.add_argument("--loss", choices=get_args(LossName), help="loss of the judge")
    parser.add_argument("--epochs", type=int, help="number of epochs")
    parser.add_argument("--max-steps", type=int, metavar="N", help="stop after N steps, before --epochs are over")
    parser.add_argument("--batch-size", type=int, help="images per step, over all processes")
    parser.add_argument("--learning-rate", type=float, help="initial rate of heads and judges")
    parser.add_argument("--backbone-learning-rate", type=float, help="initial rate of a trained backbone")
    parser.add_argument(
        "--interpolation", choices=get_args(Interpolation), help="sampling of the geometric distortions"
    )
    parser.add_argument(
        "--augment", choices=get_args(Augment), help="train on random crops and flips, or on whole images"
    )
    parser.add_argument(
        "--crop-size",
        type=int,
        metavar="PIXELS",
        help="side of the crops, below the packed size (default: equal to it)",
    )
    parser.add_argument(
        "--keep",
        type=float,
        metavar="STRENGTH",
        help="how strongly a trained backbone is held to the pretrained one in its unadapted metric; 0: not at all",
    )
    parser.add_argument(
        "--prior-strength",
        type=float,
        metavar="S",
        help="for judgement sets: how strongly heads are drawn to the unadapted metric (default: cross-validation)",
    )
    parser.add_argument("--seed", type=int, help="seed of everything random: contexts, order, distortions, dropout")


def _add_moments(parser: argparse.ArgumentParser) -> None:
    """Add the options that limit kept moments."""
    group = parser.add_argument_group("kept moments of judgement sets")
    group.add_argument(
        "--moments-memory",
        type=byte_count,
        metavar="SIZE",
        help="memory for the moments of image pairs (default: a quarter of the machine's memory)",
    )
    group.add_argument(
        "--moments-disk",
        type=byte_count,
        metavar="SIZE",
        help="disk space for moments that exceed it (default: half of the free space); moments that exceed this too "
        "are computed again in each pass",
    )


def _add_execution(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide how a step is computed."""
    group = parser.add_argument_group("execution")
    group.add_argument(
        "--precision", choices=get_args(Precision), default="auto", help="floating-point type of the backbone"
    )
    group.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="compute each step in N pieces, to save memory"
    )
    group.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=False, help="run the backbone through torch.compile"
    )
    group.add_argument(
        "--deterministic", action="store_true", help="give bit-identical results in every run, on GPUs too"
    )


def _add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide when work is saved and resumed."""
    group = parser.add_argument_group("checkpoints and fault tolerance")
    group.add_argument(
        "--resume",
        choices=get_args(Resume),
        default="auto",
        help="if --out holds a run: resume it (auto, the default), or fail (never)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an existing run in --out")
    group.add_argument(
        "--checkpoint-every",
        type=int,
        default=CheckpointPolicy.every_steps,
        metavar="STEPS",
        help="checkpoint interval",
    )
    group.add_argument(
        "--keep-checkpoints", type=int, default=CheckpointPolicy.keep, metavar="N", help="number of checkpoints to keep"
    )
    group.add_argument(
        "--stall-timeout",
        type=float,
        default=STALL_TIMEOUT_S,
        metavar="SECONDS",
        help=f"abort the job if one step of a process takes longer (default {STALL_TIMEOUT_S:.0f})",
    )


def _taps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def run_train(arguments: argparse.Namespace) -> None:
    """Run `fastdps train`. Called again, it resumes the run, or finds it finished."""
    recipe = arguments.recipe or default_recipe(arguments.variant, judgements=bool(arguments.judgements))
    config = get_recipe(recipe, {name: getattr(arguments, name) for name in SETTINGS_WITH_OPTION})
    if arguments.print_config:
        print(json.dumps(config.to_json(), indent=1))
        return
    shards = arguments.shards or arguments.judgements or arguments.triplets
    if shards is None or arguments.out is None:
        raise ConfigError("--out and one of --shards, --judgements and --triplets are needed.")
    result = train(
        shards,
        arguments.out,
        contexts=_contexts(arguments),
        validation=arguments.validation,
        config=config,
        overwrite=arguments.overwrite,
        options=_options(arguments),
    )
    if is_main_rank():
        what = f"{len(result.rankings)} contexts" if result.rankings else "the judgements"
        if result.judges:
            what += f" of {len(result.judges)} judges, and to all together"
        print_result(f"Adapted to {what}: {result.path}")


def _contexts(arguments: argparse.Namespace) -> str | tuple[str, ...] | None:
    """Return the contexts that the options select. Raises `ConfigError` for options that cannot be combined."""
    if arguments.by is not None and arguments.judgements is None:
        raise ConfigError("--by is for --judgements: rankings have no judges.")
    if arguments.judgements is not None:
        if arguments.contexts is not None and arguments.by is None:
            raise ConfigError("--contexts names judges with --judgements, which needs --by COLUMN.")
        contexts: str | None = arguments.contexts
        return contexts
    return arguments.contexts or "all" if arguments.shards else ()


def _options(arguments: argparse.Namespace) -> TrainOptions:
    return TrainOptions(
        execution=Execution(
            arguments.precision, arguments.accumulate, arguments.compile, deterministic=arguments.deterministic
        ),
        checkpoints=CheckpointPolicy(arguments.checkpoint_every, arguments.keep_checkpoints),
        parallel=arguments.parallel,
        resume=arguments.resume,
        stall_timeout_s=arguments.stall_timeout,
        trackers=tuple(arguments.log_with),
        size=arguments.size,
        loading=LoadOptions(loader=arguments.loader, cache=cache_from(arguments)),
        moments=MomentLimits(arguments.moments_memory, arguments.moments_disk),
    )
