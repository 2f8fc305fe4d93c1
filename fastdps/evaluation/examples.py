"""Examples of wrong choices of an adapted metric in its hardest contexts, for the report.

`details.json` of a run:

    {"format_version": 1,
     "held_out": {"shards", "samples", "draws", "interpolation", "sha256"},
     "pairs": [{"closer", "farther", "contexts", "baseline_accuracy", "adapted_accuracy"}, ...],
     "examples": [{"ranking", "baseline_accuracy", "adapted_accuracy", "searched": number of images,
                   "wrong": [{"sample", "reference": file, "closer": VIEW, "farther": VIEW}, ...]}, ...]}

    VIEW: {"distortion", "parameters": {name: value}, "file", "baseline_distance", "adapted_distance"}

A row of "pairs" is the accuracy on two distortions, the mean over the contexts in which `closer` must be closer to the
reference. In an example the metric wrongly finds `farther` closer. Files are in the directory `examples`.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastdps.contexts.distortions import DISTORTIONS, NAMES, draw_plan
from fastdps.contexts.interpolation import Interpolation
from fastdps.contexts.rankings import pairs
from fastdps.evaluation.tally import EVALUATION_SEED, Tally, evaluation_views
from fastdps.loading.spec import Batch
from fastdps.metric.perceptual import PerceptualMetric, all_distances
from fastdps.run_directory import DETAILS_VERSION, RunDirectory
from fastdps.runtime.files import PARTIAL, atomic_write, fsync_directory, write_errors, write_json

#: Number of contexts shown, of wrong choices per context, and the longest side of a picture in pixels.
CONTEXTS, CHOICES, LONGEST_SIDE = 4, 3, 96

#: Indices of an image in a batch, of the version that must be closer to the reference, and of the one found closer.
Choice = tuple[int, int, int]


@dataclass(frozen=True)
class Example:
    """The entry of one context in `details.json`, and the pictures (3, H, W) float of its wrong choices by name."""

    entry: dict[str, Any]
    pictures: dict[str, Tensor]


def find_examples(
    baseline: PerceptualMetric,
    adapted: Sequence[PerceptualMetric],
    batch: Batch,
    tally: Tally,
    interpolation: Interpolation,
) -> list[Example]:
    """Return the worst choices of the hardest contexts among the images of one batch, in draw 0.

    Args:
        baseline: The unadapted metric.
        adapted: The metrics of `tally`.
        batch: Images to search.
        tally: The counts that say which contexts are the hardest.
        interpolation: Sampling of the geometric distortions.

    Returns:
        One example per context. No image comes twice, and no pair of distortions comes twice in a context.
    """
    owners = [(metric, row) for metric in adapted for row in range(len(metric.weights))]
    before, after = tally.per_context()
    hardest = after.argsort(stable=True)[:CONTEXTS].tolist()
    views = evaluation_views(batch, 0, baseline.weights.device, interpolation)
    found: list[Example] = []
    shown: set[int] = set()
    for place, number in enumerate(hardest):
        metric, row = owners[number]
        d = all_distances(baseline, [metric], views)[..., [0, 1 + row]].cpu()
        entry = {
            "ranking": list(metric.rankings[row]),
            "baseline_accuracy": before[number].item(),
            "adapted_accuracy": after[number].item(),
            "searched": len(batch),
        }
        choices = worst_choices(d[..., 1], tally.votes[:, number], without=shown)
        shown |= {image for image, *_ in choices}
        found.append(_example(entry, d, choices, batch, views, f"{place}"))
    return found


def _example(
    entry: dict[str, Any], d: Tensor, choices: Sequence[Choice], batch: Batch, views: Tensor, name: str
) -> Example:
    """Return the example of one context: distances d (n, D, 2) of baseline and metric, and some wrong choices."""
    plan = draw_plan(batch.ids, seed=EVALUATION_SEED, epoch=0)
    wrong, pictures = [], {}
    for image, closer, farther in choices:
        reference = f"{name}-{batch.ids[image]}.png"
        pictures[reference] = views[image, 0]
        choice: dict[str, Any] = {"sample": int(batch.ids[image]), "reference": reference}
        for role, view in (("closer", closer), ("farther", farther)):
            distortion = NAMES[view]
            file = f"{name}-{batch.ids[image]}-{distortion}.png"
            pictures[file] = views[image, 1 + view]
            drawn = zip(DISTORTIONS[distortion].parameters, plan[distortion][image].tolist(), strict=True)
            choice[role] = {
                "distortion": distortion,
                "parameters": {parameter.name: value for parameter, value in drawn},
                "file": file,
                "baseline_distance": d[image, view, 0].item(),
                "adapted_distance": d[image, view, 1].item(),
            }
        wrong.append(choice)
    return Example({**entry, "wrong": wrong}, pictures)


def worst_choices(d: Tensor, votes: Tensor, *, most: int = CHOICES, without: Collection[int] = ()) -> list[Choice]:
    """Return wrong choices, the worst first; no image and no pair comes twice.

    The wrongness of a choice is the difference of both distances as a share of their sum.

    Args:
        d: Distances (n, D) in one context.
        votes: 1 where the second of a pair must be closer, else 0, (pairs,).
        most: Largest number of choices.
        without: Images to leave out.
    """
    first, second = pairs(d.shape[1]).unbind(dim=1)
    closer, farther = torch.where(votes == 1, second, first), torch.where(votes == 1, first, second)
    wrongness = (d[:, closer] - d[:, farther]) / (d[:, closer] + d[:, farther]).clamp_min(1e-12)
    chosen: list[tuple[int, int]] = []
    for flat in wrongness.flatten().argsort(descending=True, stable=True).tolist():
        image, pair = divmod(flat, len(first))
        if wrongness[image, pair] <= 0 or len(chosen) == most:
            break
        if image not in without and all(image != other and pair != other_pair for other, other_pair in chosen):
            chosen.append((image, pair))
    return [(image, int(closer[pair]), int(farther[pair])) for image, pair in chosen]


@dataclass(frozen=True)
class Details:
    """The content of `details.json`: the held-out set, the accuracy per ordered pair, and examples."""

    held_out: Mapping[str, Any]
    pairs: Sequence[Mapping[str, Any]]
    examples: Sequence[Example]


def replace_examples(run: RunDirectory, examples: Sequence[Example]) -> None:
    """Write the pictures, and put them in place of those of an earlier evaluation, whose `details.json` is removed.

    An interruption while they are written changes nothing. Raises `FastDPSError`.
    """
    pictures = {
        file: png(pixels.mul(255).round().to(torch.uint8).permute(1, 2, 0), LONGEST_SIDE)
        for example in examples
        for file, pixels in example.pictures.items()
    }
    replace_pictures(run.examples, pictures, named_in=run.details)


def replace_pictures(directory: Path, pictures: Mapping[str, bytes], *, named_in: Path) -> None:
    """Write a directory of pictures in place of an earlier one, and remove the file that names the earlier pictures.

    An interruption while they are written changes nothing.

    Args:
        directory: The directory.
        pictures: The content of each file by name.
        named_in: The file that names the pictures; it must be written again afterwards.

    Raises:
        FastDPSError: A file cannot be written.
    """
    new = directory.with_name(directory.name + PARTIAL)
    shutil.rmtree(new, ignore_errors=True)
    with write_errors(directory):
        try:
            new.mkdir()
            for file, content in pictures.items():
                with atomic_write(new / file) as opened:
                    opened.write(content)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        named_in.unlink(missing_ok=True)
        fsync_directory(directory.parent)
        shutil.rmtree(directory, ignore_errors=True)
        new.replace(directory)


def write_details(run: RunDirectory, details: Details) -> None:
    """Write `details.json`. Raises `FastDPSError`."""
    write_json(
        run.details,
        {
            "format_version": DETAILS_VERSION,
            "held_out": details.held_out,
            "pairs": details.pairs,
            "examples": [example.entry for example in details.examples],
        },
    )


def png(pixels: Tensor, longest_side: int) -> bytes:
    """Encode an image uint8 (H, W, 3) as a PNG whose longest side has at most this many pixels."""
    image = Image.fromarray(pixels.cpu().numpy())
    image.thumbnail((longest_side, longest_side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
