"""`fastdps judge`: a page on which people say which of two images is closer to a third."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from fastdps.commands.options import add_quiet, examples
from fastdps.errors import FastDPSError

#: Packages of the extra "judge".
PACKAGES = ("starlette", "uvicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps judge`."""
    parser.epilog = examples(
        "fastdps judge photos --out judged --open",
        "fastdps judge shards/photos/train --base runs/shared --out judged --versions distortions",
        "fastdps judge photos --out judged --host 0.0.0.0",
    )
    parser.add_argument(
        "images", type=Path, metavar="IMAGES", help="a folder of images, or a shard set of images or judgements"
    )
    parser.add_argument(
        "--base",
        default="alexnet",
        metavar="RUN|FILE|BACKBONE",
        help='what the metric is adapted from: a run, a metric file, a backbone, or "lpips" (default: alexnet)',
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory of answers and metric")
    parser.add_argument(
        "--triplets", type=Path, metavar="FILE", help="which triplets to ask: .csv, .jsonl or .parquet with ref, p0, p1"
    )
    parser.add_argument(
        "--versions",
        choices=("images", "distortions"),
        help="compare images, or distorted versions of one (default: images; for a judgement set its triplets)",
    )
    parser.add_argument("--judge", metavar="NAME", help="who judges (default: the page asks)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; beyond loopback the page needs a token"
    )
    parser.add_argument("--port", type=int, help="port (default: the first free one from 8765 on)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--most-images", type=int, default=1000, metavar="N", help="use at most N images (default: 1000)"
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of the images as the metric sees them")
    parser.add_argument(
        "--choose",
        choices=("random", "uncertainty", "information"),
        default="random",
        help="how the next triplet is chosen (default: random)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of triplets (default: 0)")
    add_quiet(parser)


def run_judge(arguments: argparse.Namespace) -> None:
    """Run `fastdps judge`."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise FastDPSError(f"fastdps judge needs {' and '.join(missing)}: pip install 'fastdps[judge]'.")
    from fastdps.judge.run import JudgeOptions, judge

    options = JudgeOptions(
        triplets=arguments.triplets,
        versions=arguments.versions,
        person=arguments.judge,
        host=arguments.host,
        port=arguments.port,
        open_browser=arguments.open,
        most_images=arguments.most_images,
        size=arguments.size,
        strategy=arguments.choose,
        seed=arguments.seed,
    )
    judge(arguments.images, arguments.out, arguments.base, options)
