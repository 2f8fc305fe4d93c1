"""`fastdps gallery`: a picture of some samples of a shard set, to see what is in it."""

from __future__ import annotations

import argparse
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastdps.commands.options import add_cache, add_quiet, cache_from, location
from fastdps.contexts.distortions import DISTORTIONS, apply_plan, draw_plan
from fastdps.errors import ConfigError
from fastdps.loading.loader import open_shards
from fastdps.loading.spec import Batch
from fastdps.report.pictures import Panel, draw_sheet, write_sheet
from fastdps.runtime.console import counter, print_result
from fastdps.shards.format import Kind, read_manifest

#: Side in pixels at which images are shown that have no common size.
OWN_SIZES_SHOWN_AT = 128
#: Samples that are loaded and distorted at a time.
BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps gallery`."""
    parser.add_argument(
        "directory", type=location, metavar="DIR", help="a shard set, such as shards/sample/train, or a URL"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture, e.g. grid.png")
    parser.add_argument("--samples", type=int, metavar="N", help="how many (default: 36 images, or 8 rows of others)")
    parser.add_argument("--distort", action="store_true", help="show each image with its six distortions")
    parser.add_argument("--seed", type=int, default=0, help="of the choice, and of the distortions")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="resize images to this side")
    parser.add_argument("--title", help="above the picture (default: what it shows of what)")
    parser.add_argument(
        "--colors", type=int, metavar="N", help="no more colours than these, 2 to 256: a PNG of a third of the size"
    )
    add_cache(parser)
    add_quiet(parser)


def run_gallery(arguments: argparse.Namespace) -> None:
    """Write the picture, and say where it is."""
    directory, out = arguments.directory, arguments.out
    manifest = read_manifest(directory)
    if arguments.distort and manifest.kind != "images":
        raise ConfigError(f"{directory} holds {manifest.kind}; --distort is for sets of images.")
    in_grid = manifest.kind == "images" and not arguments.distort
    wanted = arguments.samples if arguments.samples is not None else 36 if in_grid else 8
    if wanted < 1:
        raise ConfigError(f"--samples must be at least 1, not {wanted}.")
    if arguments.colors is not None and not 2 <= arguments.colors <= 256:
        raise ConfigError(f"--colors must be 2 to 256, not {arguments.colors}.")
    own_size = OWN_SIZES_SHOWN_AT if manifest.image_size is None else None
    loader = open_shards(
        directory,
        batch_size=min(wanted, BATCH),
        seed=arguments.seed,
        size=arguments.size or own_size,
        cache=cache_from(arguments),
    )
    shown = min(wanted, manifest.samples)
    rows: list[list[Panel]] = []
    with counter("drawing", unit="samples") as count, closing(loader.epoch(0)) as batches:
        count.start(shown)
        while len(rows) < shown:
            batch = next(batches)
            if arguments.distort:
                found = distorted_rows(batch, arguments.seed)
            elif in_grid:
                found = [[Panel(_pixels(batch, "image", n), f"{batch.ids[n]}")] for n in range(len(batch))]
            else:
                found = judged_rows(batch, manifest.kind)
            found = found[: shown - len(rows)]
            rows += found
            count.advance(len(found))
    if in_grid:
        rows = grid([panel for row in rows for panel in row])
    title = arguments.title or f"{directory}: {shown} of {manifest.samples:,} {manifest.kind}"
    sheet = draw_sheet(rows, title)
    if arguments.colors:
        sheet = sheet.quantize(arguments.colors, dither=Image.Dither.NONE)
    write_sheet(sheet, out)
    print_result(str(out))


def grid(panels: list[Panel]) -> list[list[Panel]]:
    """Panels in rows, about as many as columns."""
    columns = math.ceil(math.sqrt(len(panels)))
    return [panels[start : start + columns] for start in range(0, len(panels), columns)]


def distorted_rows(batch: Batch, seed: int) -> list[list[Panel]]:
    """One row a sample: the image, and its distortions of epoch 0 with what was drawn for them.

    Raises `ConfigError` for images too small to be distorted.
    """
    plan = draw_plan(batch.ids, seed=seed, epoch=0)
    try:
        views = apply_plan(batch.images.permute(0, 3, 1, 2).to(torch.float32) / 255, plan)
    except ValueError as error:
        raise ConfigError(f"{error}. Give a larger --size.") from error
    pixels = views.mul(255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).numpy()
    rows = []
    for n in range(len(batch)):
        row = [Panel(_pixels(batch, "image", n), f"{batch.ids[n]}")]
        for d, (name, distortion) in enumerate(DISTORTIONS.items()):
            drawn = zip(distortion.parameters, plan[name][n].tolist(), strict=True)
            values = ", ".join(f"{parameter.name} {value:.3g}" for parameter, value in drawn)
            row.append(Panel(pixels[n, d], f"{name}\n{values}"))
        rows.append(row)
    return rows


def judged_rows(batch: Batch, kind: Kind) -> list[list[Panel]]:
    """One row a sample, with the votes; of a triplet the image that more people find closer to ref is framed."""
    rows = []
    for n in range(len(batch)):
        if kind == "triplets":
            share = float(batch.components["judge"][n])
            rows.append(
                [
                    Panel(_pixels(batch, "p0", n), f"p0: {1 - share:.0%} of votes", chosen=share < 0.5),
                    Panel(_pixels(batch, "ref", n), f"ref {batch.ids[n]}"),
                    Panel(_pixels(batch, "p1", n), f"p1: {share:.0%} of votes", chosen=share > 0.5),
                ]
            )
        else:
            share = float(batch.components["same"][n])
            rows.append(
                [
                    Panel(_pixels(batch, "p0", n), f"p0 {batch.ids[n]}"),
                    Panel(_pixels(batch, "p1", n), f"p1: {share:.0%} say same"),
                ]
            )
    return rows


def _pixels(batch: Batch, component: str, n: int) -> NDArray[np.uint8]:
    """One image (H, W, 3)."""
    return batch.components[component][n].numpy()
