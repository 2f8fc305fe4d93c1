"""`fastdps evaluate`: score a run on held-out images and on human judgement."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from fastdps.commands.options import add_cache, add_quiet, cache_from, examples, is_main_rank, location
from fastdps.contexts.interpolation import Interpolation
from fastdps.evaluation.options import DRAWS, EvaluationOptions
from fastdps.loading.options import LoaderName, LoadOptions
from fastdps.run_directory import RunDirectory
from fastdps.runtime.console import is_quiet, print_result

if TYPE_CHECKING:
    from fastdps.evaluation.run_scores import RunScores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps evaluate`."""
    parser.epilog = examples(
        "fastdps evaluate runs/photos --shards shards/photos/val",
        "fastdps evaluate runs/judged --judgements shards/judged/val",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--shards", type=location, help="shard set of held-out images: a directory or a URL")
    parser.add_argument(
        "--judgements", type=location, metavar="DIR|FILE", help="judgement set, or a file of judgements"
    )
    parser.add_argument("--bapps", type=location, help="packed BAPPS, or any set of judged triplets or pairs")
    parser.add_argument(
        "--draws", type=int, default=DRAWS, help=f"draws of all distortions per image (default {DRAWS})"
    )
    parser.add_argument(
        "--interpolation",
        choices=get_args(Interpolation),
        help="sampling of the geometric distortions (default: that of the training, or nearest if that is mixed)",
    )
    parser.add_argument("--batch-size", type=int, default=50, help="images per step and process (default 50)")
    parser.add_argument("--size", type=int, help="resize images to a square of this many pixels while loading")
    parser.add_argument("--loader", choices=get_args(LoaderName), default="auto", help="how shards are read")
    add_cache(parser)
    add_quiet(parser)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Run `fastdps evaluate`. Earlier scores that are not computed again are kept."""
    from fastdps.evaluation.evaluate import evaluate

    options = EvaluationOptions(
        draws=arguments.draws,
        batch_size=arguments.batch_size,
        interpolation=arguments.interpolation,
        size=arguments.size,
        loading=LoadOptions(loader=arguments.loader, cache=cache_from(arguments)),
    )
    scores = evaluate(
        arguments.run,
        shards=arguments.shards,
        bapps=arguments.bapps,
        judgements=arguments.judgements,
        options=options,
    )
    if is_main_rank():
        print_evaluation(
            arguments.run,
            scores,
            on_contexts=bool(arguments.shards),
            on_people=bool(arguments.bapps),
            on_judges=bool(arguments.judgements),
        )


def print_evaluation(
    run: Path, scores: RunScores, *, on_contexts: bool, on_people: bool = False, on_judges: bool = False
) -> None:
    """Print tables of the new scores, and the path of `scores.json`."""
    from fastdps.commands.tables import print_agreement, print_judges, print_scores, print_warnings

    if not is_quiet():
        if on_judges and scores.judgements:
            print_judges(scores.judgements)
        if on_contexts:
            print_scores(scores)
        if on_people and scores.bapps:
            print_agreement(scores.bapps)
        kinds = ("judgements",) * on_judges + ("contexts",) * on_contexts + ("2afc", "jnd") * on_people
        print_warnings(scores, *kinds)
    print_result(f"Scores: {RunDirectory(run).scores}; as a page: fastdps report {shlex.quote(str(run))}")
