"""Examples of choices of an adapted metric in its hardest contexts, for the report: errors, and corrected ones.

`details.json` of a run:

    {"format_version": 1,
     "held_out": {"shards", "samples", "draws", "interpolation", "sha256"},
     "pairs": [{"closer", "farther", "contexts", "baseline_accuracy", "adapted_accuracy"}, ...],
     "examples": [{"ranking", "baseline_accuracy", "adapted_accuracy", "searched": number of images,
                   "wrong": [{"sample", "reference": file, "closer": VIEW, "farther": VIEW}, ...],
                   "right": [the same, ...]}, ...],
     "legend": {"sample", "reference": file, "views": [{"distortion", "parameters", "file"}, ...]}}

    VIEW: {"distortion", "parameters": {name: value}, "file", "baseline_distance", "adapted_distance"}

A row of "pairs" is the accuracy on two distortions, the mean over the contexts in which `closer` must be closer to the
reference. In a wrong choice the metric finds `farther` closer; in a right one it finds `closer` closer, and the
unadapted metric did not. The legend shows all distortions of one image. Files are in the directory `examples`. Versions
before 0.2 wrote neither "right" nor "legend".
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

from fastdps.contexts.distortions import DISTORTIONS, NAMES, DistortionPlan, draw_plan
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
    """The entry of one context in `details.json`, or the legend, and its pictures (3, H, W) float by name."""

    entry: dict[str, Any]
    pictures: dict[str, Tensor]


def find_examples(
    baseline: PerceptualMetric,
    adapted: Sequence[PerceptualMetric],
    batch: Batch,
    tally: Tally,
    interpolation: Interpolation,
) -> list[Example]:
    """Return the worst and the corrected choices of the hardest contexts among the images of one batch, in draw 0.

    Args:
        baseline: The unadapted metric.
        adapted: The metrics of `tally`.
        batch: Images to search.
        tally: The counts that say which contexts are the hardest.
        interpolation: Sampling of the geometric distortions.

    Returns:
        One example per context. No image comes twice in wrong choices, or in corrected ones, or in one context; and no
        pair of distortions comes twice in the choices of a kind in a context.
    """
    owners = [(metric, row) for metric in adapted for row in range(len(metric.weights))]
    before, after = tally.per_context()
    hardest = after.argsort(stable=True)[:CONTEXTS].tolist()
    views = evaluation_views(batch, 0, baseline.weights.device, interpolation)
    found: list[Example] = []
    shown: dict[str, set[int]] = {"wrong": set(), "right": set()}
    for place, number in enumerate(hardest):
        metric, row = owners[number]
        d = all_distances(baseline, [metric], views)[..., [0, 1 + row]].cpu()
        entry = {
            "ranking": list(metric.rankings[row]),
            "baseline_accuracy": before[number].item(),
            "adapted_accuracy": after[number].item(),
            "searched": len(batch),
        }
        votes = tally.votes[:, number]
        pictures: dict[str, Tensor] = {}
        wrong = worst_choices(d[..., 1], votes, without=shown["wrong"])
        own = {image for image, *_ in wrong}
        right = corrected_choices(d[..., 0], d[..., 1], votes, without=shown["right"] | own)
        shown["wrong"] |= own
        shown["right"] |= {image for image, *_ in right}
        for kind, choices in (("wrong", wrong), ("right", right)):
            entry[kind] = _described(d, choices, batch, views, f"{place}", pictures)
        found.append(Example(entry, pictures))
    return found


def _described(
    d: Tensor, choices: Sequence[Choice], batch: Batch, views: Tensor, name: str, pictures: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """Return the entries of choices by distances d (n, D, 2) of baseline and metric, and add their pictures by name."""
    plan = draw_plan(batch.ids, seed=EVALUATION_SEED, epoch=0)
    described = []
    for image, closer, farther in choices:
        reference = f"{name}-{batch.ids[image]}.png"
        pictures[reference] = views[image, 0]
        choice: dict[str, Any] = {"sample": int(batch.ids[image]), "reference": reference}
        for role, view in (("closer", closer), ("farther", farther)):
            file = f"{name}-{batch.ids[image]}-{NAMES[view]}.png"
            pictures[file] = views[image, 1 + view]
            choice[role] = {
                **_drawn(plan, image, NAMES[view]),
                "file": file,
                "baseline_distance": d[image, view, 0].item(),
                "adapted_distance": d[image, view, 1].item(),
            }
        described.append(choice)
    return described


def _drawn(plan: DistortionPlan, image: int, distortion: str) -> dict[str, Any]:
    """Return the name and the parameters of a distortion of an image."""
    drawn = zip(DISTORTIONS[distortion].parameters, plan[distortion][image].tolist(), strict=True)
    return {"distortion": distortion, "parameters": {parameter.name: value for parameter, value in drawn}}


def find_legend(batch: Batch, interpolation: Interpolation) -> Example:
    """Return all distortions of one image of a batch, in draw 0: the image on which they are all seen best.

    It is the one whose least visible distortion, relative to others of its kind, is the most visible.

    Args:
        batch: Images to choose from.
        interpolation: Sampling of the geometric distortions.
    """
    views = evaluation_views(batch, 0, batch.images.device, interpolation).cpu()
    change = (views[:, 1:] - views[:, :1]).abs().mean(dim=(2, 3, 4))  # (n, D)
    image = int((change / change.median(dim=0).values.clamp_min(1e-6)).min(dim=1).values.argmax())
    plan, sample = draw_plan(batch.ids, seed=EVALUATION_SEED, epoch=0), int(batch.ids[image])
    pictures = {f"legend-{sample}.png": views[image, 0]}
    shown = []
    for view, name in enumerate(NAMES):
        file = f"legend-{sample}-{name}.png"
        pictures[file] = views[image, 1 + view]
        shown.append({**_drawn(plan, image, name), "file": file})
    return Example({"sample": sample, "reference": f"legend-{sample}.png", "views": shown}, pictures)


def worst_choices(d: Tensor, votes: Tensor, *, most: int = CHOICES, without: Collection[int] = ()) -> list[Choice]:
    """Return wrong choices, the worst first; no image and no pair comes twice.

    The wrongness of a choice is the difference of both distances as a share of their sum.

    Args:
        d: Distances (n, D) in one context.
        votes: 1 where the second of a pair must be closer, else 0, (pairs,).
        most: Largest number of choices.
        without: Images to leave out.
    """
    wrongness, closer, farther = _wrongness(d, votes)
    return _strongest(wrongness, closer, farther, most, without)


def corrected_choices(
    before: Tensor, after: Tensor, votes: Tensor, *, most: int = CHOICES, without: Collection[int] = ()
) -> list[Choice]:
    """Return right choices that were wrong before adapting, the clearest first; no image and no pair comes twice.

    Args:
        before: Distances (n, D) of the unadapted metric.
        after: Distances (n, D) of the adapted one in a context.
        votes: As of `worst_choices`.
        most: Largest number of choices.
        without: Images to leave out.
    """
    wrong_before, closer, farther = _wrongness(before, votes)
    clearness = torch.minimum(wrong_before, -_wrongness(after, votes)[0])
    return _strongest(clearness, closer, farther, most, without)


def _wrongness(d: Tensor, votes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wrongness (n, pairs) of choices by distances (n, D), negative where right, and the views of pairs."""
    first, second = pairs(d.shape[1]).unbind(dim=1)
    closer, farther = torch.where(votes == 1, second, first), torch.where(votes == 1, first, second)
    wrongness = (d[:, closer] - d[:, farther]) / (d[:, closer] + d[:, farther]).clamp_min(1e-12)
    return wrongness, closer, farther


def _strongest(strength: Tensor, closer: Tensor, farther: Tensor, most: int, without: Collection[int]) -> list[Choice]:
    """Return the choices of the largest positive strengths (n, pairs); no image and no pair comes twice."""
    chosen: list[tuple[int, int]] = []
    for flat in strength.flatten().argsort(descending=True, stable=True).tolist():
        image, pair = divmod(flat, len(closer))
        if strength[image, pair] <= 0 or len(chosen) == most:
            break
        if image not in without and all(image != other and pair != other_pair for other, other_pair in chosen):
            chosen.append((image, pair))
    return [(image, int(closer[pair]), int(farther[pair])) for image, pair in chosen]


@dataclass(frozen=True)
class Details:
    """The content of `details.json`: the held-out set, the accuracy per ordered pair, examples, and the legend."""

    held_out: Mapping[str, Any]
    pairs: Sequence[Mapping[str, Any]]
    examples: Sequence[Example]
    legend: Example


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
            "legend": details.legend.entry,
        },
    )


def png(pixels: Tensor, longest_side: int) -> bytes:
    """Encode an image uint8 (H, W, 3) as a PNG whose longest side has at most this many pixels."""
    image = Image.fromarray(pixels.cpu().numpy())
    image.thumbnail((longest_side, longest_side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
