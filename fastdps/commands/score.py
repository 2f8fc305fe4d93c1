"""`fastdps score`: distances of images to one image, the nearest first, and where two of them differ."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
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
from fastdps.report.pictures import draw_difference, write_sheet
from fastdps.runtime.console import counter, is_quiet, print_result
from fastdps.runtime.machine import keep_freed_memory
from fastdps.shards.images import Fit, Pixels, UnreadableItemError, decode

#: Images that are compared at a time: so many, or fewer with more pixels than these in all.
BATCH, BATCH_PIXELS = 32, 32 * 256 * 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastdps score`."""
    parser.add_argument("reference", type=Path, metavar="REF", help="the image that all others are compared with")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMG", help="images, or folders of them")
    parser.add_argument(
        "--metric",
        required=True,
        metavar="RUN|FILE|BACKBONE",
        help="a run, a metric's file, or e.g. alexnet: unadapted",
    )
    parser.add_argument("--context", metavar="A,B,...", help="which of the run's contexts, least disruptive first")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="resize all images to a square of this side")
    parser.add_argument("--fit", choices=get_args(Fit), default="squash", help="how --size makes a square")
    parser.add_argument("--top", type=int, metavar="N", help="show the nearest N alone")
    parser.add_argument("--device", metavar="NAME", help="where to compute (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--map", type=Path, metavar="FILE", help="write a picture of where REF and the one IMG differ")
    add_quiet(parser)


def run_score(arguments: argparse.Namespace) -> None:
    """Compare, and print the ranking."""
    keep_freed_memory()
    for option in ("size", "top"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option} must be at least 1, not {value}.")
    files = find_images(arguments.images)
    if arguments.map is not None and len(files) != 1:
        raise ConfigError(f"--map shows where REF and one image differ, not {len(files)}: name one.")
    reference = read_image(arguments.reference, arguments.size, arguments.fit)
    metric = load(arguments.metric, arguments.context, device=_device(arguments.device))
    distances = _distances(metric, (arguments.reference, reference), files, arguments)
    order = sorted(range(len(files)), key=distances.__getitem__)
    nearest = [(str(files[index]), distances[index]) for index in order[: arguments.top]]
    if arguments.map is not None:
        _write_map(metric, (arguments.reference, reference), files[0], arguments)
    if arguments.json:
        print(json.dumps(_record(metric, arguments, reference, nearest, len(files)), indent=1, ensure_ascii=False))
        return
    if not is_quiet():
        print_ranking(f"Distance to {arguments.reference} by {_named(metric)}", nearest, of=len(files))
    if arguments.map is not None:
        print_result(f"Where they differ: {arguments.map}")


def _named(metric: ImageMetric) -> str:
    """The metric as headings have it."""
    return f"{metric.metric.backbone.name} ({', '.join(metric.context or ['not adapted'])})"


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files that are meant: those named, and of folders all images in them at any depth."""
    found: list[Path] = []
    for path in paths:
        found += [path / item for item in Folder(path).items()] if path.is_dir() else [path]
    return found


def read_image(path: Path, size: int | None, fit: Fit) -> Pixels:
    """An image (H, W, 3) in RGB, upright, as packing reads it. Raises `SampleError` that names the file."""
    if not path.exists():
        raise SampleError(f"{path} does not exist.")
    if path.is_dir():
        raise SampleError(f"{path} is a folder; name one image.")
    try:
        return decode(read_file(path.parent, path.name), size, fit)
    except UnreadableItemError as error:
        raise SampleError(f"{path} {error}. Replace it, or leave it out.") from error


def _distances(
    metric: ImageMetric, reference: tuple[Path, Pixels], files: Sequence[Path], arguments: argparse.Namespace
) -> list[float]:
    """Distances of all files to the reference, in their order, some at a time."""
    ref, found = _to_tensor(reference[1]), list[float]()
    at_a_time = max(1, min(BATCH, BATCH_PIXELS // ref[0].numel()))
    with torch.no_grad(), counter("comparing", unit="images", enabled=len(files) > 1) as count:
        count.start(len(files))
        for start in range(0, len(files), at_a_time):
            batch = [_fitting(path, reference, arguments) for path in files[start : start + at_a_time]]
            found += metric(ref, torch.stack([_to_tensor(image) for image in batch])).tolist()
            count.advance(len(batch))
    return found


def _fitting(path: Path, reference: tuple[Path, Pixels], arguments: argparse.Namespace) -> Pixels:
    """An image of the reference's size. Raises `ImageError` for one of another."""
    image, (ref_path, ref) = read_image(path, arguments.size, arguments.fit), reference
    if image.shape != ref.shape:
        raise ImageError(
            f"{path} has {image.shape[1]} x {image.shape[0]} pixels, and {ref_path} {ref.shape[1]} x {ref.shape[0]}: a "
            f"distance needs one size. --size {min(ref.shape[:2])} makes squares of that side of all."
        )
    return image


def _to_tensor(image: Pixels) -> Tensor:
    return torch.tensor(image).movedim(-1, 0)


def _write_map(metric: ImageMetric, reference: tuple[Path, Pixels], path: Path, arguments: argparse.Namespace) -> None:
    image = _fitting(path, reference, arguments)
    with torch.no_grad():
        distances = metric(_to_tensor(reference[1]), _to_tensor(image), spatial=True)[0].cpu().numpy()
    names = reference[0].name, path.name
    picture = draw_difference(reference[1], image, distances, names, f"where they differ by {_named(metric)}")
    write_sheet(picture, arguments.map)


def _record(
    metric: ImageMetric, arguments: argparse.Namespace, reference: Pixels, nearest: Sequence[tuple[str, float]], of: int
) -> dict[str, Any]:
    """What --json prints."""
    return {
        "metric": arguments.metric,
        "backbone": metric.metric.backbone.name,
        "context": metric.context,
        "reference": str(arguments.reference),
        "height": reference.shape[0],
        "width": reference.shape[1],
        "compared": of,
        "images": [{"rank": rank, "path": path, "distance": d} for rank, (path, d) in enumerate(nearest, start=1)],
        "map": None if arguments.map is None else str(arguments.map),
    }


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ConfigError(f"--device {name} cannot be used: {str(error).splitlines()[0]}. Try --device cpu.") from error
    return device
