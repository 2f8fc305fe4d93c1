"""`fastdps score`: the distances of images to a reference, nearest first, and where two images differ."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

from fastdps.commands.options import add_quiet, examples
from fastdps.errors import ConfigError
from fastdps.runtime.console import is_quiet, print_notice, print_result
from fastdps.runtime.machine import keep_freed_memory
from fastdps.shards.images import Fit

#: Skipped images that a notice names.
SHOWN_SKIPPED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps score`."""
    parser.epilog = examples(
        "fastdps score photos/00.jpg photos --metric runs/mine --size 64 --top 5",
        "fastdps score photos/00.jpg photos/01.jpg --metric alexnet --size 256 --map map.png",
    )
    parser.add_argument("reference", type=Path, metavar="REF", help="the image that all others are compared with")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMG", help="images, or folders of them")
    parser.add_argument(
        "--metric",
        required=True,
        metavar="RUN|FILE|BACKBONE",
        help="a run directory, a metric file, hub:USER/NAME, the name of a backbone such as alexnet (unadapted), or "
        "lpips",
    )
    parser.add_argument(
        "--context",
        metavar="A,B,...|JUDGE",
        help="which of the run's contexts: a ranking, least disruptive first, or the name of a judge",
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="resize all images to a square of this side")
    parser.add_argument("--fit", choices=get_args(Fit), default="squash", help="how --size makes a square")
    parser.add_argument("--top", type=int, metavar="N", help="show only the nearest N")
    parser.add_argument("--device", metavar="NAME", help="where to compute (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--map", type=Path, metavar="FILE", help="write a picture of where REF and a single IMG differ")
    add_quiet(parser)


def run_score(arguments: argparse.Namespace) -> None:
    """Run `fastdps score`."""
    from fastdps.commands.score_images import ReferenceImage, find_device, find_images, rank_images, title_of, write_map
    from fastdps.commands.tables import print_ranking
    from fastdps.metric.load import load

    keep_freed_memory()
    for option in ("size", "top"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option} must be at least 1, not {value}.")
    reference = ReferenceImage.read(arguments.reference, arguments.size, arguments.fit)
    files = find_images(arguments.images, arguments.reference)
    if arguments.map is not None and len(files) != 1:
        raise ConfigError(f"--map shows where REF and one image differ, not {len(files)}: name one image.")
    metric = load(arguments.metric, arguments.context, device=find_device(arguments.device))
    found = rank_images(metric, reference, files, top=arguments.top)
    if arguments.map is not None:
        write_map(metric, reference, files[0].path, arguments.map)
    if found.skipped:
        shown = "; ".join(f"{one.path} {one.reason}" for one in found.skipped[:SHOWN_SKIPPED])
        more = "; ..." if len(found.skipped) > SHOWN_SKIPPED else ""
        print_notice(f"skipped {len(found.skipped):,} of {len(files):,} images: {shown}{more}")
    if arguments.json:
        written = None if arguments.map is None else str(arguments.map)
        record = {"metric": arguments.metric, **found.to_dict(), "map": written}
        print(json.dumps(record, indent=1, ensure_ascii=False))
        return
    if not is_quiet():
        title = f"Distance to {reference.path} by {title_of(metric)}"
        scores = [str(one) for one in metric.metric.origin.scores if one.kind in ("contexts", "judgements")]
        print_ranking(title, found.nearest, of=found.compared, scores=scores)
    if arguments.map is not None:
        print_result(f"Where they differ: {arguments.map}")
