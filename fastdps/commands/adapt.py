"""`fastdps adapt`: a metric from few judgements, and what to expect of it."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fastdps.commands.options import add_cache, add_quiet, cache_from, examples
from fastdps.loading.options import LoadOptions
from fastdps.runtime.console import print_result

if TYPE_CHECKING:
    from fastdps.training.adapt import Adapted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps adapt`."""
    parser.epilog = examples(
        "fastdps adapt alexnet --judgements judged.csv --out runs/mine",
        "fastdps adapt runs/shared --judgements judged.csv --by person --out runs/people",
    )
    parser.add_argument(
        "base",
        metavar="BASE",
        help="a run directory, a metric file, hub:USER/NAME, the name of a backbone such as alexnet, or lpips for its "
        "published heads",
    )
    parser.add_argument(
        "--judgements",
        required=True,
        metavar="FILE|DIR",
        help="a .csv, .jsonl or .parquet file of judgements, a directory of such files, or a judgement set",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory to write")
    parser.add_argument("--context", metavar="A,B,...|JUDGE", help="the context of BASE to start from")
    parser.add_argument(
        "--by", metavar="COLUMN", help="a head for each judge too: the column that names the judge, or judge"
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="resize images to a square of this side")
    parser.add_argument("--force", action="store_true", help="use the fit even if it is not expected to beat the base")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cross-validation (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="where to compute (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of sentences")
    add_cache(parser)
    add_quiet(parser)


def run_adapt(arguments: argparse.Namespace) -> None:
    """Run `fastdps adapt`."""
    from fastdps.training.adapt import AdaptOptions, adapt

    adapted = adapt(
        arguments.base,
        arguments.judgements,
        arguments.out,
        context=arguments.context,
        by=arguments.by,
        force=arguments.force,
        overwrite=arguments.overwrite,
        options=AdaptOptions(
            size=arguments.size,
            device=arguments.device,
            seed=arguments.seed,
            loading=LoadOptions(cache=cache_from(arguments)),
        ),
    )
    if arguments.json:
        print(json.dumps(adapted.to_dict(), indent=1, ensure_ascii=False))
        return
    print_result(adapted.message)
    if adapted.verdict != "adapted":
        print_result(_what_is_used(adapted, forced=arguments.force))
    out = shlex.quote(str(arguments.out))
    print_result(f"Run: {arguments.out}; use it: fastdps score REF IMAGES --metric {out} --size {adapted.data.size}")


def _what_is_used(adapted: Adapted, *, forced: bool) -> str:
    if forced:
        return "The run uses the fit all the same, because of --force."
    return f"The run keeps the weights of {adapted.base.name}; --force uses the fit all the same."
