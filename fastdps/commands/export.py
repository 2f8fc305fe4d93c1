"""`fastdps export`: a metric for another library, verified, with a model card beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastdps.commands.options import add_quiet
from fastdps.errors import ConfigError
from fastdps.export.card import describe, finish, paths_beside, to_markdown
from fastdps.export.export import FORMATS, export
from fastdps.export.lpips_checkpoint import LpipsCheckpoint
from fastdps.metric.load import load_with_location
from fastdps.run_directory import RunDirectory
from fastdps.runtime.console import print_notice, print_result
from fastdps.runtime.files import write_json, write_text
from fastdps.runtime.signals import exit_on_signal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps export`."""
    parser.add_argument("metric", metavar="RUN", help="a run's directory, a metric's file, or a backbone's name")
    parser.add_argument("--context", metavar="A,B,...", help="which of several contexts, least disruptive first")
    parser.add_argument("--format", choices=sorted(FORMATS), required=True, help="what is to read it")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument(
        "--with-backbone",
        action="store_true",
        help="for lpips: put the backbone into the file, so that lpips has nothing to download (pnet_rand=True)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    add_quiet(parser)


def run_export(arguments: argparse.Namespace) -> None:
    """Write the file and its card, and say what was found."""
    form, out = FORMATS[arguments.format], arguments.out
    if arguments.with_backbone:
        if form.name != LpipsCheckpoint.name:
            raise ConfigError(f"--with-backbone is for lpips; files of --format {form.name} hold the backbone anyway.")
        form = LpipsCheckpoint(with_backbone=True)
    if out.suffix != form.suffix:
        raise ConfigError(f"--out {out} must end with {form.suffix} for --format {form.name}: {out.stem}{form.suffix}.")
    if out.exists() and not arguments.overwrite:
        raise ConfigError(f"{out} is there already. Choose another --out, or pass --overwrite.")
    with exit_on_signal():
        form.require()
    loaded, place = load_with_location(arguments.metric, arguments.context)
    directory = Path(arguments.metric)
    run = RunDirectory(directory) if place is not None and directory.is_dir() else None
    print_notice(f"Writing {out}, and reading it back with {form.library}.")
    card = describe(loaded.metric, place, run)
    verified = export(loaded.metric, form, out, card)
    whole = finish(card, form, loaded.metric, out.name, verified)
    markdown, as_json = paths_beside(out)
    write_text(markdown, to_markdown(whole))
    write_json(as_json, whole)
    print_result(
        f"{out}: {whole['verified']['with']} measures the same on {verified.pairs} pairs of random images "
        f"(largest difference {verified.largest_difference:.1e}). Card: {markdown}, {as_json}"
    )
