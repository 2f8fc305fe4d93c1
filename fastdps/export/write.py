"""Write a metric in a format, and verify that the other library computes the same distances."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastdps.errors import FastDPSError
from fastdps.export.format import Distances, Format
from fastdps.metric.image_sizes import smallest_side
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.files import fsync_directory, write_errors, write_text
from fastdps.runtime.locks import temporary_directory

#: Tolerance of distances: both libraries sum thousands of float32 values, in different orders.
ABSOLUTE, RELATIVE = 1e-5, 1e-4
#: Batches that are compared: number of images, and pixels that height and width exceed the smallest side by.
_BATCHES = ((1, 0, 0), (3, 0, 21), (4, 33, 9))


class Verified(NamedTuple):
    """Result of a verification.

    Attributes:
        pairs: Number of image pairs compared.
        largest_difference: Largest difference between the distances of the other library and those of fastdps.
        largest_distance: Largest distance.
    """

    pairs: int
    largest_difference: float
    largest_distance: float


def write_verified(
    metric: PerceptualMetric,
    form: Format,
    path: Path,
    card: Mapping[str, Any],
    beside: Callable[[Verified], Mapping[Path, str]] = lambda _: {},
) -> Verified:
    """Write a metric, read it back with the other library, and give the file its name once distances agree.

    The file gets its name last, so an interrupted export leaves no file without a card or with the card of another.

    Args:
        metric: A metric in one context.
        form: The format.
        path: The file.
        card: Its model card, for formats that can hold metadata.
        beside: Returns the texts of the files to write beside it.

    Returns:
        The result of the comparison.

    Raises:
        ConfigError: The other library is missing, or the format cannot hold the metric.
        FastDPSError: The file cannot be written or read back, or its distances differ.
    """
    form.require()
    form.check(metric)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same directory, so that it can be renamed, and under its final name, which some formats record.
        with temporary_directory(path.parent, prefix=".export-") as directory:
            unverified = directory / path.name
            form.write(metric, unverified, card)
            verified = verify(metric, form, form.read_back(metric, unverified))
            texts = beside(verified)
            for target, text in texts.items():
                write_text(directory / target.name, text)
            path.unlink(missing_ok=True)
            for target in texts:
                (directory / target.name).replace(target)
            fsync_directory(path.parent)
            unverified.replace(path)
        fsync_directory(path.parent)
    return verified


@torch.no_grad()
def verify(metric: PerceptualMetric, form: Format, theirs: Distances) -> Verified:
    """Compare distances on random images of several sizes.

    Args:
        metric: A metric in one context.
        form: Its format.
        theirs: The distances of the other library.

    Returns:
        The result of the comparison.

    Raises:
        FastDPSError: The distances differ by more than `ABSOLUTE` and `RELATIVE` allow.
    """
    generator = torch.Generator().manual_seed(1)
    side = max(64, smallest_side(metric.backbone.name, metric.backbone.taps))
    pairs, difference, distance = 0, 0.0, 0.0
    for number, taller, wider in _BATCHES:
        x, far = torch.rand(2, number, 3, side + taller, side + wider, generator=generator)
        for y in (far, (x + 0.1 * far).clamp(0, 1)):
            ours, found = metric(x, y)[:, 0].cpu(), theirs(x, y)
            if found.shape != ours.shape or not torch.allclose(found, ours, rtol=RELATIVE, atol=ABSOLUTE):
                raise FastDPSError(
                    f"{form.library} reads the file, but computes {found.tolist()} where fastdps computes "
                    f"{ours.tolist()}, on images of {x.shape[2]} x {x.shape[3]}. The file was removed; please report "
                    "this with the versions of both."
                )
            pairs += number
            difference = max(difference, (found - ours).abs().max().item())
            distance = max(distance, ours.max().item())
    return Verified(pairs, difference, distance)
