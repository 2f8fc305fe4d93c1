"""`fastdps score`: the distances of images to a reference, nearest first, and where two images differ."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from fastdps.commands.options import add_quiet
from fastdps.commands.tables import print_ranking
from fastdps.errors import ConfigError, ImageError, SampleError
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.load import load
from fastdps.packing.sources.folder import Folder, read_file
from fastdps.report.judge_charts import shorten
from fastdps.report.pictures import draw_difference, write_sheet
from fastdps.runtime.console import counter, is_quiet, print_result
from fastdps.runtime.machine import keep_freed_memory
from fastdps.shards.images import Fit, Pixels, UnreadableItemError, decode

#: Largest number of images in a batch, and largest number of pixels in all of its images together.
BATCH, BATCH_PIXELS = 32, 32 * 256 * 256
#: Widest name of a judge in a heading.
JUDGE_COLUMNS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fastdps score`."""
    parser.add_argument("reference", type=Path, metavar="REF", help="the image that all others are compared with")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMG", help="images, or folders of them")
    parser.add_argument(
        "--metric",
        required=True,
        metavar="RUN|FILE|BACKBONE",
        help="a run directory, a metric file, or the name of a backbone such as alexnet (unadapted)",
    )
    parser.add_argument(
        "--context",
        metavar="A,B,...|JUDGE",
        help="which of the run's contexts: a ranking, least disruptive first, or the name of a judge",
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="resize all images to a square of this side")
    parser.add_argument("--fit", choices=get_args(Fit), default="squash", help="how --size makes a square")
    parser.add_argument("--top", type=int, metavar="N", help="show only the nearest N")
    parser.add_argument("--device", metavar="NAME", help="where to compute (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--map", type=Path, metavar="FILE", help="write a picture of where REF and a single IMG differ")
    add_quiet(parser)


@dataclass(frozen=True)
class ReferenceImage:
    """The image that others are compared with.

    Attributes:
        path: Its file.
        pixels: The image, uint8 RGB (H, W, 3).
        size: Side in pixels to which all images are resized, None for their own size.
        fit: How a rectangle becomes a square of that side.
    """

    path: Path
    pixels: Pixels
    size: int | None = None
    fit: Fit = "squash"

    @classmethod
    def read(cls, path: Path, size: int | None, fit: Fit) -> ReferenceImage:
        """Read the reference. Raises `SampleError`, which names the file."""
        return cls(path, read_image(path, size, fit), size, fit)

    def read_other(self, path: Path) -> Pixels:
        """Read an image to compare. Raises `ImageError` if its size differs, `SampleError` if it cannot be read."""
        image, own = read_image(path, self.size, self.fit), self.pixels
        if image.shape != own.shape:
            raise ImageError(
                f"{path} has {image.shape[1]} x {image.shape[0]} pixels, and {self.path} {own.shape[1]} x "
                f"{own.shape[0]}: both must have one size. --size {min(own.shape[:2])} resizes all images to squares "
                "of that side."
            )
        return image


@dataclass(frozen=True)
class ImageDistances:
    """Distances of images to a reference.

    Attributes:
        metric: The metric that computed them.
        reference: The reference.
        nearest: Path and distance of the nearest images, nearest first.
        compared: Number of images compared, of which `nearest` may be a part.
    """

    metric: ImageMetric
    reference: ReferenceImage
    nearest: Sequence[tuple[str, float]]
    compared: int

    def to_dict(self) -> dict[str, Any]:
        """Return the distances as JSON types."""
        height, width = self.reference.pixels.shape[:2]
        return {
            "backbone": self.metric.metric.backbone.name,
            "context": self.metric.context,
            "judge": self.metric.judge,
            "reference": str(self.reference.path),
            "height": height,
            "width": width,
            "compared": self.compared,
            "images": [{"rank": rank, "path": path, "distance": d} for rank, (path, d) in enumerate(self.nearest, 1)],
        }


def run_score(arguments: argparse.Namespace) -> None:
    """Run `fastdps score`."""
    keep_freed_memory()
    for option in ("size", "top"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option} must be at least 1, not {value}.")
    files = find_images(arguments.images)
    if arguments.map is not None and len(files) != 1:
        raise ConfigError(f"--map shows where REF and one image differ, not {len(files)}: name one image.")
    reference = ReferenceImage.read(arguments.reference, arguments.size, arguments.fit)
    metric = load(arguments.metric, arguments.context, device=_device(arguments.device))
    found = rank_images(metric, reference, files, top=arguments.top)
    if arguments.map is not None:
        write_map(metric, reference, files[0], arguments.map)
    if arguments.json:
        written = None if arguments.map is None else str(arguments.map)
        record = {"metric": arguments.metric, **found.to_dict(), "map": written}
        print(json.dumps(record, indent=1, ensure_ascii=False))
        return
    if not is_quiet():
        print_ranking(f"Distance to {reference.path} by {_title_of(metric)}", found.nearest, of=found.compared)
    if arguments.map is not None:
        print_result(f"Where they differ: {arguments.map}")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and all images in the given folders at any depth."""
    found: list[Path] = []
    for path in paths:
        found += [path / item for item in Folder(path).items()] if path.is_dir() else [path]
    return found


def read_image(path: Path, size: int | None, fit: Fit) -> Pixels:
    """Read an image as packing does.

    Args:
        path: An image file.
        size: Side in pixels of the square to which it is resized, None for its own size.
        fit: How a rectangle becomes a square.

    Returns:
        The image, uint8 RGB (H, W, 3), upright.

    Raises:
        SampleError: There is no such file, or it does not decode.
    """
    if not path.exists():
        raise SampleError(f"{path} does not exist.")
    if path.is_dir():
        raise SampleError(f"{path} is a folder; name one image.")
    try:
        return decode(read_file(path.parent, path.name), size, fit)
    except UnreadableItemError as error:
        raise SampleError(f"{path} {error}. Replace it, or leave it out.") from error


def rank_images(
    metric: ImageMetric, reference: ReferenceImage, files: Sequence[Path], top: int | None = None
) -> ImageDistances:
    """Compare images with a reference, in batches.

    Args:
        metric: The metric.
        reference: The image to compare with.
        files: Image files of the size of the reference.
        top: Number of nearest images to return, None for all.

    Returns:
        The distances, nearest first.

    Raises:
        ImageError: An image has another size than the reference, or is too small for the backbone.
        SampleError: An image cannot be read.
    """
    ref, distances = _to_tensor(reference.pixels), list[float]()
    batch_size = max(1, min(BATCH, BATCH_PIXELS // ref[0].numel()))
    with torch.no_grad(), counter("comparing", unit="images", enabled=len(files) > 1) as count:
        count.start(len(files))
        for start in range(0, len(files), batch_size):
            batch = [_to_tensor(reference.read_other(path)) for path in files[start : start + batch_size]]
            distances += metric(ref, torch.stack(batch)).tolist()
            count.advance(len(batch))
    order = sorted(range(len(files)), key=distances.__getitem__)
    nearest = [(str(files[index]), distances[index]) for index in order[:top]]
    return ImageDistances(metric, reference, nearest, compared=len(files))


def write_map(metric: ImageMetric, reference: ReferenceImage, path: Path, out: Path) -> None:
    """Write a picture of where an image differs from the reference. Raises `FastDPSError` if it cannot be written."""
    image = reference.read_other(path)
    with torch.no_grad():
        distances = metric(_to_tensor(reference.pixels), _to_tensor(image), spatial=True)[0].cpu().numpy()
    names = reference.path.name, path.name
    title = f"where they differ by {_title_of(metric)}"
    write_sheet(draw_difference(reference.pixels, image, distances, names, title), out)


def _title_of(metric: ImageMetric) -> str:
    """Return the backbone and the context of a metric, for headings."""
    unranked = "not adapted" if metric.judge is None else f"judgements of {shorten(metric.judge, JUDGE_COLUMNS)}"
    return f"{metric.metric.backbone.name} ({', '.join(metric.context or [unranked])})"


def _to_tensor(image: Pixels) -> Tensor:
    return torch.tensor(image).movedim(-1, 0)


def _device(name: str | None) -> torch.device:
    """Return the device of a name, by default a GPU if there is one. Raises `ConfigError` if it cannot be used."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ConfigError(f"--device {name} cannot be used: {str(error).splitlines()[0]}. Try --device cpu.") from error
    return device
