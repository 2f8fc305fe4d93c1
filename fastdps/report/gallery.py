"""Gallery: a picture of samples of a shard set: plain, distorted, or with their votes."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastdps.contexts.distortions import DISTORTIONS, apply_plan, draw_plan
from fastdps.errors import ConfigError
from fastdps.loading.loader import ShardLoader, open_shards
from fastdps.loading.options import LoadOptions
from fastdps.loading.spec import Batch
from fastdps.report.pictures import Panel, draw_sheet
from fastdps.runtime.console import counter
from fastdps.shards.cache import Cache
from fastdps.shards.format import Kind, read_manifest
from fastdps.shards.images import Pixels
from fastdps.shards.judgements import JudgementTable, read_ids, read_judgements
from fastdps.shards.storage import Location

#: Side in pixels to which images without a common size are resized.
OWN_SIZES_SHOWN_AT = 128
#: Largest number of samples that are loaded and distorted together.
BATCH = 32
#: Default number of samples: images in a grid, or rows of several images.
GRID_SAMPLES, ROW_SAMPLES = 36, 8


@dataclass(frozen=True)
class GalleryOptions:
    """Options for drawing a gallery.

    Attributes:
        samples: Number of samples (of a judgement set: of judgements), None for 36 images or 8 rows.
        distort: Show each image with its six distortions.
        seed: Seed of the choice of samples, and of the distortions.
        size: Side in pixels to which images are resized, None for their packed size.
        title: Title of the picture; None for the set, and how many of its samples are shown.
        colors: Largest number of colours, 2 to 256, for a smaller PNG; None keeps all colours.
    """

    samples: int | None = None
    distort: bool = False
    seed: int = 0
    size: int | None = None
    title: str | None = None
    colors: int | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"--samples must be at least 1, not {self.samples}.")
        if self.colors is not None and not 2 <= self.colors <= 256:
            raise ConfigError(f"--colors must be 2 to 256, not {self.colors}.")


def draw_gallery(directory: Location, options: GalleryOptions, cache: Cache | None = None) -> Image.Image:
    """Draw samples of a shard set.

    Args:
        directory: Directory or URL of the set.
        options: Which samples to draw, and how.
        cache: Cache for the shards of a URL, None for the default one.

    Returns:
        The picture; its mode is "P" if the number of colours is limited, "RGB" otherwise.

    Raises:
        ConfigError: The samples cannot be distorted: they are judgements, or the images are too small.
        ShardError: The set is missing or damaged.
    """
    manifest = read_manifest(directory)
    if options.distort and manifest.kind != "images":
        raise ConfigError(f"{directory} holds {manifest.kind}; --distort is for sets of images.")
    in_grid = manifest.kind == "images" and not options.distort
    samples = options.samples or (GRID_SAMPLES if in_grid else ROW_SAMPLES)
    judgements = read_judgements(directory, manifest) if manifest.kind == "judgements" else None
    total = manifest.samples if judgements is None else len(judgements)
    shown = min(samples, total)
    own_size = OWN_SIZES_SHOWN_AT if manifest.image_size is None else None
    loader = open_shards(
        directory,
        batch_size=min(samples, BATCH),
        size=options.size or own_size,
        seed=options.seed if judgements is None else None,
        options=LoadOptions(cache=cache),
    )
    if judgements is None:
        rows = _rows(loader, shown, options)
    else:
        order = np.random.default_rng(options.seed).permutation(total)[:shown]
        rows = judgement_rows(loader, judgements.select(order), read_ids(directory, manifest))
    if in_grid:
        rows = grid([panel for row in rows for panel in row])
    title = options.title or f"{directory}: {shown} of {total:,} {manifest.kind}"
    if not rows:
        raise ConfigError(f"{directory} has no {manifest.kind} to draw.")
    sheet = draw_sheet(rows, title)
    return sheet.quantize(options.colors, dither=Image.Dither.NONE) if options.colors else sheet


def _rows(loader: ShardLoader, shown: int, options: GalleryOptions) -> list[list[Panel]]:
    """Return one row of panels for each of the first `shown` samples."""
    kind = loader.manifest.kind
    rows: list[list[Panel]] = []
    with counter("drawing", unit="samples") as count, closing(loader.epoch(0)) as batches:
        count.start(shown)
        while len(rows) < shown:
            batch = next(batches)
            if options.distort:
                found = distorted_rows(batch, options.seed)
            elif kind == "images":
                found = [[Panel(_pixels(batch, "image", n), f"{batch.ids[n]}")] for n in range(len(batch))]
            else:
                found = judged_rows(batch, kind)
            found = found[: shown - len(rows)]
            rows += found
            count.advance(len(found))
    return rows


def grid(panels: list[Panel]) -> list[list[Panel]]:
    """Arrange panels in about as many rows as columns."""
    columns = math.ceil(math.sqrt(len(panels)))
    return [panels[start : start + columns] for start in range(0, len(panels), columns)]


def distorted_rows(batch: Batch, seed: int) -> list[list[Panel]]:
    """Draw the distortions of epoch 0 of a batch.

    Args:
        batch: A batch of images.
        seed: Seed of the distortions.

    Returns:
        One row per sample: the image, and its distorted versions with their parameters.

    Raises:
        ConfigError: The images are too small to be distorted.
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
    """Return one row per sample with its votes; the image of a triplet with most votes is framed."""
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


def judgement_rows(loader: ShardLoader, judgements: JudgementTable, ids: NDArray[np.int64]) -> list[list[Panel]]:
    """Return one row for each judgement: a, ref and b with the votes; the image of the majority is framed.

    Args:
        loader: The judgement set in packed order. Only the images of the judgements are loaded.
        judgements: The judgements.
        ids: The sample ids of the set, in packed order.
    """
    wanted = np.unique(np.concatenate([judgements.ref, judgements.a, judgements.b]))
    places = [range(place, place + 1) for place in np.searchsorted(ids, wanted).tolist()]
    pixels: dict[int, Pixels] = {}
    with closing(loader.epoch(0, left=places)) as batches:
        for batch in batches:
            pixels |= {int(batch.ids[n]): _pixels(batch, "image", n) for n in range(len(batch))}
    columns = (judgements.ref, judgements.a, judgements.b, judgements.votes_a, judgements.votes_b, judgements.judge)
    rows = []
    for ref, a, b, votes_a, votes_b, judge in zip(*(column.tolist() for column in columns), strict=True):
        who = f"\n{judgements.judges[judge]}" if judge >= 0 else ""
        rows.append(
            [
                Panel(pixels[a], f"a {a}: {votes_a:.3g} votes", chosen=votes_a > votes_b),
                Panel(pixels[ref], f"ref {ref}{who}"),
                Panel(pixels[b], f"b {b}: {votes_b:.3g} votes", chosen=votes_b > votes_a),
            ]
        )
    return rows


def _pixels(batch: Batch, component: str, n: int) -> Pixels:
    """Return image `n` of a component, uint8 RGB (H, W, 3)."""
    return batch.components[component][n].numpy()
