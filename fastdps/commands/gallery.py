"""`fastdps gallery`: draw samples of a shard set as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdps.commands.options import add_cache, add_quiet, cache_from, examples, location
from fastdps.runtime.console import print_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps gallery`."""
    parser.epilog = examples(
        "fastdps gallery shards/photos/train --out grid.png",
        "fastdps gallery shards/photos/train --distort --samples 4 --out distorted.png",
    )
    parser.add_argument(
        "directory", type=location, metavar="DIR", help="a shard set, such as shards/sample/train, or a URL"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write, such as grid.png")
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="number of samples or judgements (default: 36 images, or 8 rows of several images)",
    )
    parser.add_argument("--distort", action="store_true", help="show each image with its six distortions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of samples, and of the distortions")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="resize images to this side")
    parser.add_argument(
        "--title", help="title of the picture (default: the set, and how many of its samples are shown)"
    )
    parser.add_argument(
        "--colors", type=int, metavar="N", help="at most N colours, 2 to 256: a PNG of a third of the size"
    )
    add_cache(parser)
    add_quiet(parser)


def run_gallery(arguments: argparse.Namespace) -> None:
    """Run `fastdps gallery`."""
    from fastdps.report.gallery import GalleryOptions, draw_gallery
    from fastdps.report.pictures import write_sheet

    options = GalleryOptions(
        samples=arguments.samples,
        distort=arguments.distort,
        seed=arguments.seed,
        size=arguments.size,
        title=arguments.title,
        colors=arguments.colors,
    )
    sheet = draw_gallery(arguments.directory, options, cache_from(arguments))
    write_sheet(sheet, arguments.out)
    print_result(str(arguments.out))
