"""The options of `fastdps train`. An option that is not given is None: it keeps the value of the recipe or the run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from fastdps.commands.options import (
    add_cache,
    add_quiet,
    byte_count,
    examples,
    location,
    table_keys,
    weighted_location,
)
from fastdps.contexts.interpolation import Interpolation
from fastdps.loading.options import LoaderName
from fastdps.metric.options import Precision
from fastdps.runtime.timeouts import STALL_TIMEOUT_S
from fastdps.training.options import CheckpointPolicy, Parallel, Resume
from fastdps.training.recipes import RECIPES, Augment, Comparison, JudgeName, LossName, Variant

#: Values of --resume that are not a run.
RESUME: tuple[str, ...] = get_args(Resume)
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
    "draws_kept",
    "learning_rate",
    "backbone_learning_rate",
    "interpolation",
    "augment",
    "crop_size",
    "keep",
    "lora",
    "seed",
    "prior_strength",
    "by",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps train`."""
    parser.usage = "%(prog)s (--shards DIR | --judgements DIR|FILE | --triplets DIR) --out RUN [options]"
    parser.epilog = (
        f"distortions: {', '.join(table_keys('contexts/distortions.py', 'DISTORTIONS'))}\n"
        f"backbones: {', '.join(table_keys('metric/backbones.py', 'BACKBONES'))}; with --taps any image classifier "
        "of torchvision; timm/NAME of timm; NAME@1,2 with taps 1 and 2; NAME+NAME side by side\n\n"
        + examples(
            "fastdps train --shards shards/photos/train --out runs/photos",
            "fastdps train --judgements judged.csv --by person --out runs/judged",
            "fastdps train --resume runs/photos",
        )
    )
    _add_data(parser)
    _add_run(parser)
    _add_settings(parser)
    _add_loading(parser)
    _add_execution(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the metric is adapted to."""
    group = parser.add_argument_group("data and contexts")
    data = group.add_mutually_exclusive_group()
    data.add_argument(
        "--shards",
        type=weighted_location,
        action="append",
        metavar="DIR[:WEIGHT]",
        help="shard set of images to train on: a directory or a URL; several, each with its weight, are mixed in each "
        "batch: --shards A:0.7 --shards B:0.3",
    )
    data.add_argument(
        "--judgements",
        type=location,
        metavar="DIR|FILE",
        help="judgement set, or a .csv, .jsonl or .parquet file of judgements, to adapt to instead of contexts",
    )
    data.add_argument(
        "--triplets", type=location, metavar="DIR", help="shard set of judged triplets to adapt to (BAPPS)"
    )
    group.add_argument(
        "--validation", type=location, metavar="DIR", help="set of the same kind to choose the best epoch by"
    )
    group.add_argument(
        "--contexts",
        help='"all" (the default), a number of contexts to draw, or rankings "a,b,c,d,e,f", least disruptive first, '
        'separated by ";"; with --by: names of judges, separated by ","',
    )
    group.add_argument(
        "--by",
        metavar="COLUMN",
        help="for judgements: each judge is a context, beside the pooled one of all; the column whose value is the "
        'judge, or "judge" for that of a judgement set',
    )
    group.add_argument(
        "--size", type=int, metavar="PIXELS", help="resize images to a square of this side while loading"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options of the run directory."""
    group = parser.add_argument_group("run")
    group.add_argument("--out", type=Path, metavar="RUN", help="run directory to create, or to resume")
    group.add_argument(
        "--resume",
        metavar="RUN",
        help="resume a run with the data, settings and options that it recorded; or what to do if --out holds a run: "
        "auto (resume it, the default) or never (fail)",
    )
    group.add_argument("--overwrite", action="store_true", help="replace an existing run in --out")
    group.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="STEPS",
        help=f"checkpoint interval (default {CheckpointPolicy.every_steps})",
    )
    group.add_argument(
        "--keep-checkpoints",
        type=int,
        metavar="N",
        help=f"number of checkpoints to keep (default {CheckpointPolicy.keep})",
    )
    group.add_argument(
        "--log-with",
        action="append",
        metavar="TRACKER",
        help="log to tensorboard, wandb or another tracker of Accelerate as well as to log.jsonl; may be repeated",
    )
    add_quiet(group)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a recipe."""
    group = parser.add_argument_group("settings, which replace those of the recipe")
    add = group.add_argument
    add(
        "--recipe",
        choices=sorted(RECIPES),
        help="named set of settings (default: fast; for --variant shared: shared; for --judgements: judgements)",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML or JSON file of settings by name, as --print-config prints them; options replace its values",
    )
    add("--print-config", action="store_true", help="print all settings as JSON and exit")

    def setting(name: str, help: str, **more: Any) -> None:
        add(f"--{name.replace('_', '-')}", help=help + _defaults(name), **more)

    setting(
        "variant",
        "what is trained: baseline, nothing; lin, heads; shared, heads and one backbone for all contexts; tune, heads "
        "and a backbone for each context; scratch, the same from a random backbone",
        choices=get_args(Variant),
    )
    setting("backbone", "name of a backbone, see below", metavar="NAME")
    setting("taps", "sub-modules whose outputs are compared", type=_taps, metavar="N,N,...")
    setting("comparison", "how features are compared", choices=get_args(Comparison))
    setting("judge", "maps two distances to a probability", choices=get_args(JudgeName))
    setting("loss", "loss of the judge", choices=get_args(LossName))
    setting("epochs", "number of epochs", type=int, metavar="N")
    setting("max_steps", "stop after N steps, before --epochs are over", type=int, metavar="N")
    setting("batch_size", "images per step, over all processes", type=int, metavar="N")
    draws = "draws of the distortions of each image that are kept for all epochs, for lin; 0: new ones in each epoch"
    setting("draws_kept", draws, type=int, metavar="N")
    setting("learning_rate", "initial rate of heads and judges", type=float, metavar="RATE")
    setting("backbone_learning_rate", "initial rate of a trained backbone", type=float, metavar="RATE")
    setting("interpolation", "sampling of the geometric distortions", choices=get_args(Interpolation))
    setting("augment", "train on random crops and flips, or on whole images", choices=get_args(Augment))
    setting("crop_size", "side of the crops, below the packed size (default: equal to it)", type=int, metavar="PIXELS")
    held = "how strongly a trained backbone is held to the pretrained one in its unadapted metric; 0: not at all"
    setting("keep", held, type=float, metavar="STRENGTH")
    rank = "train a backbone by low-rank matrices of rank R, with little memory; 0: all of its parameters"
    setting("lora", rank, type=int, metavar="R")
    prior = "for judgements: how strongly heads are drawn to the unadapted metric (default: cross-validation)"
    setting("prior_strength", prior, type=float, metavar="S")
    setting("seed", "seed of everything random: contexts, order, distortions, dropout", type=int, metavar="N")


def _defaults(name: str) -> str:
    """Return the value of a setting in the recipe fast, and in the recipes where it differs, for a help text."""
    values = {recipe: getattr(make(), name) for recipe, make in RECIPES.items()}
    if values["fast"] is None:
        return ""
    others = [f"{recipe}: {_text(value)}" for recipe, value in values.items() if value != values["fast"]]
    return f" (default {', '.join([_text(values['fast']), *others])})"


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the options of reading shards, and the limits of what is kept."""
    group = parser.add_argument_group("loading")
    group.add_argument("--loader", choices=get_args(LoaderName), help="how shards are read (default auto)")
    group.add_argument(
        "--moments-memory",
        type=byte_count,
        metavar="SIZE",
        help="memory of a process for moments of image pairs (default: a quarter of the machine's memory)",
    )
    group.add_argument(
        "--moments-disk",
        type=byte_count,
        metavar="SIZE",
        help="disk space for moments that exceed it (default: half of the free space); moments that exceed this too "
        "are computed again in each pass",
    )
    add_cache(parser)


def _add_execution(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide how a step is computed."""
    group = parser.add_argument_group("execution")
    group.add_argument(
        "--precision", choices=get_args(Precision), help="floating-point type of the backbone (default auto)"
    )
    group.add_argument("--accumulate", type=int, metavar="N", help="compute each step in N pieces, to save memory")
    group.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="run the backbone through torch.compile"
    )
    group.add_argument(
        "--deterministic", action="store_true", default=None, help="give bit-identical results in every run"
    )
    group.add_argument(
        "--parallel",
        choices=get_args(Parallel),
        help="with tune and scratch: all processes on one context (data, the default), or each on contexts of its own",
    )
    group.add_argument(
        "--profile",
        action="store_true",
        help="show where the time goes, by stage, what limits the run first and what to change; writes "
        "profile.json and trace.json.gz, for ui.perfetto.dev, to the run",
    )
    group.add_argument(
        "--stall-timeout",
        type=float,
        metavar="SECONDS",
        help=f"abort the job if one step of a process takes longer (default {STALL_TIMEOUT_S:.0f})",
    )


def _taps(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
