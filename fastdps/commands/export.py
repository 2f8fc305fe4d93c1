"""`fastdps export`: write a metric for another library, or push it to the hub; verified, with a model card."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdps.commands.options import add_quiet, counted, examples
from fastdps.errors import ConfigError
from fastdps.runtime.console import print_notice, print_result
from fastdps.runtime.signals import exit_on_signal

#: Names of the formats, see `fastdps.export.export`.
FORMATS = ("lpips", "onnx", "torch")
#: Widest name of a judge in the result.
JUDGE_COLUMNS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps export`."""
    parser.epilog = examples(
        "fastdps export runs/mine --format lpips --out mine.pth",
        "fastdps export runs/photos --context color,darken,zoom_in,rotate,translate,blur --format onnx --out mine.onnx",
        "fastdps export runs/mine --push anna/mine --licence apache-2.0",
    )
    parser.add_argument(
        "metric", metavar="RUN", help="run directory, metric file, hub:USER/NAME, or name of a backbone"
    )
    parser.add_argument(
        "--context",
        metavar="A,B,...|JUDGE",
        help="which of several contexts: a ranking, least disruptive first, or the name of a judge",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="format of the file: for the lpips package, for onnxruntime, or for torch.export",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write")
    parser.add_argument(
        "--with-backbone",
        action="store_true",
        help="for lpips: include the backbone in the file, so that lpips has nothing to download (pnet_rand=True)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    group = parser.add_argument_group("the Hugging Face hub, instead of --format and --out")
    group.add_argument(
        "--push",
        metavar="USER/NAME",
        help="push to this repository, for `fastdps.load('hub:USER/NAME')`; without --context all contexts",
    )
    group.add_argument(
        "--licence", metavar="ID", help="licence of the repository, such as apache-2.0 (default: other, see the card)"
    )
    group.add_argument("--private", action="store_true", help="only you see the repository, if it is new")
    group.add_argument("--tag", metavar="NAME", help="tag of the commit, for `fastdps.load('hub:USER/NAME@NAME')`")
    add_quiet(parser)


def run_export(arguments: argparse.Namespace) -> None:
    """Run `fastdps export`."""
    _check_options(arguments)
    if arguments.push is None:
        _export(arguments)
    else:
        _push(arguments)


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise `ConfigError` unless the options are those of a file, or those of the hub."""
    of_file = [f"--{name}" for name in ("format", "out") if getattr(arguments, name) is not None]
    of_file += [f"--{name}" for name in ("with-backbone", "overwrite") if getattr(arguments, name.replace("-", "_"))]
    of_hub = [f"--{name}" for name in ("licence", "private", "tag") if getattr(arguments, name)]
    if arguments.push is not None and of_file:
        raise ConfigError(f"{of_file[0]} is for files, and --push for the hub: leave one of them out.")
    if arguments.push is None and of_hub:
        raise ConfigError(f"{of_hub[0]} is for the hub: give --push USER/NAME, or leave {of_hub[0]} out.")
    if arguments.push is None and (arguments.format is None or arguments.out is None):
        raise ConfigError("Give --format and --out to write a file, or --push USER/NAME for the hub.")


def _push(arguments: argparse.Namespace) -> None:
    from fastdps.export.hub import push_to_hub

    pushed = push_to_hub(
        arguments.metric,
        arguments.push,
        context=arguments.context,
        licence=arguments.licence or "other",
        private=arguments.private or None,
        tag=arguments.tag,
    )
    print_result(
        f"{counted(pushed.contexts, 'context')} pushed: {pushed.url}. Load exactly this metric with "
        f'fastdps.load("{pushed.address}").'
    )


def _export(arguments: argparse.Namespace) -> None:
    from fastdps.export.export import check_path, export, find_format
    from fastdps.report.judge_charts import shorten

    form = find_format(arguments.format, with_backbone=arguments.with_backbone)
    check_path(arguments.out, form, overwrite=arguments.overwrite)
    with exit_on_signal():  # the import of large libraries may take seconds
        form.require()
    print_notice(f"Writing {arguments.out} and reading it back with {form.library}.")
    result = export(
        arguments.metric,
        arguments.out,
        arguments.format,
        context=arguments.context,
        with_backbone=arguments.with_backbone,
        overwrite=arguments.overwrite,
    )
    name = result.card["judge"]
    judge = "" if name is None else f" (judgements of {shorten(name, JUDGE_COLUMNS)})"
    print_result(
        f"{result.path}{judge}: {result.card['verified']['with']} computes the same distances for "
        f"{result.verified.pairs} pairs of random images (largest difference "
        f"{result.verified.largest_difference:.1e}). Card: {result.card_markdown}, {result.card_json}"
    )
