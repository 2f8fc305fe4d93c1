"""`fastdps export`: write a metric for another library, verified, with a model card beside the file."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdps.commands.options import add_quiet, examples
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
    )
    parser.add_argument("metric", metavar="RUN", help="run directory, metric file, or name of a backbone")
    parser.add_argument(
        "--context",
        metavar="A,B,...|JUDGE",
        help="which of several contexts: a ranking, least disruptive first, or the name of a judge",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="format of the file: for the lpips package, for onnxruntime, or for torch.export",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument(
        "--with-backbone",
        action="store_true",
        help="for lpips: include the backbone in the file, so that lpips has nothing to download (pnet_rand=True)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_quiet(parser)


def run_export(arguments: argparse.Namespace) -> None:
    """Run `fastdps export`."""
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
