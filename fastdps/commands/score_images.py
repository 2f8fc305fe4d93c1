"""Distances of images to a reference, for `fastdps score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdps.errors import ConfigError, ImageError, SampleError
from fastdps.metric.image_metric import ImageMetric
from fastdps.packing.sources.folder import Folder, read_file
from fastdps.report.judge_charts import shorten
from fastdps.report.pictures import draw_difference, write_sheet
from fastdps.runtime.console import counter
from fastdps.shards.images import Fit, Pixels, UnreadableItemError, decode

#: Largest number of images in a batch, and largest number of pixels in all of its images together.
BATCH, BATCH_PIXELS = 32, 32 * 256 * 256
#: Widest name of a judge in a heading.
JUDGE_COLUMNS = 60


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
        return self.of_equal_size(read_image(path, self.size, self.fit), path)

    def of_equal_size(self, image: Pixels, path: Path) -> Pixels:
        """Return an image. Raises `ImageError` if its size differs from that of the reference."""
        own = self.pixels
        if image.shape != own.shape:
            raise ImageError(
                f"{path} has {image.shape[1]} x {image.shape[0]} pixels, and {self.path} {own.shape[1]} x "
                f"{own.shape[0]}: both must have one size. --size {min(own.shape[:2])} resizes all images to squares "
                "of that side."
            )
        return image


@dataclass(frozen=True)
class Candidate:
    """An image to compare.

    Attributes:
        path: Its file.
        is_named: It was named itself, and not found in a folder. Then it must be readable.
    """

    path: Path
    is_named: bool = True


@dataclass(frozen=True)
class SkippedImage:
    """An image of a folder that cannot be read.

    Attributes:
        path: Its file.
        reason: The reason, as the rest of a sentence that begins with the path.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class ImageDistances:
    """Distances of images to a reference.

    Attributes:
        metric: The metric that computed them.
        reference: The reference.
        nearest: Path and distance of the nearest images, nearest first.
        compared: Number of images compared, of which `nearest` may be a part.
        skipped: Images in folders that could not be read.
    """

    metric: ImageMetric
    reference: ReferenceImage
    nearest: Sequence[tuple[str, float]]
    compared: int
    skipped: Sequence[SkippedImage] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the distances as JSON types."""
        height, width = self.reference.pixels.shape[:2]
        return {
            "backbone": self.metric.metric.backbone.name,
            "context": self.metric.context,
            "judge": self.metric.judge,
            "scores": [asdict(score) for score in self.metric.metric.origin.scores],
            "reference": str(self.reference.path),
            "height": height,
            "width": width,
            "compared": self.compared,
            "skipped": [{"path": str(one.path), "reason": one.reason} for one in self.skipped],
            "images": [{"rank": rank, "path": path, "distance": d} for rank, (path, d) in enumerate(self.nearest, 1)],
        }


def find_images(paths: Sequence[Path], reference: Path) -> list[Candidate]:
    """Return the images to compare: named files, and all images in named folders at any depth but the reference.

    Args:
        paths: Files and folders.
        reference: The reference. It is left out where it is in a folder, and compared where it is named itself.

    Raises:
        SampleError: There is no image but the reference.
    """
    found: list[Candidate] = []
    for path in paths:
        if path.is_dir():
            inside = (path / item for item in Folder(path).items())
            found += [Candidate(file, is_named=False) for file in inside if not _is_same(file, reference)]
        else:
            found.append(Candidate(path))
    if not found:
        raise SampleError(f"{', '.join(map(str, paths))} holds no image but the reference {reference}.")
    return found


def _is_same(path: Path, reference: Path) -> bool:
    """Return whether two paths are the same file; False for a broken link."""
    try:
        return path.samefile(reference)
    except OSError:
        return False


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
        return _decode(path, size, fit)
    except UnreadableItemError as error:
        raise SampleError(f"{path} {error}. Replace it, or leave it out.") from error


def _decode(path: Path, size: int | None, fit: Fit) -> Pixels:
    return decode(read_file(path.parent, path.name), size, fit)


def rank_images(
    metric: ImageMetric, reference: ReferenceImage, files: Sequence[Candidate], top: int | None = None
) -> ImageDistances:
    """Compare images with a reference, in batches. Images of folders that cannot be read are skipped and listed.

    Args:
        metric: The metric.
        reference: The image to compare with.
        files: Images of the size of the reference.
        top: Number of nearest images to return, None for all.

    Returns:
        The distances, nearest first.

    Raises:
        ImageError: An image has another size than the reference, or is too small for the backbone.
        SampleError: A named image cannot be read, or none of the images can.
    """
    ref = _to_tensor(reference.pixels)
    found: list[tuple[str, float]] = []
    skipped: list[SkippedImage] = []
    batch_size = max(1, min(BATCH, BATCH_PIXELS // ref[0].numel()))
    with torch.no_grad(), counter("comparing", unit="images", enabled=len(files) > 1) as count:
        count.start(len(files))
        for start in range(0, len(files), batch_size):
            part = files[start : start + batch_size]
            read = [(file.path, image) for file in part if (image := _read(reference, file, skipped)) is not None]
            if read:
                distances = metric(ref, torch.stack([_to_tensor(image) for _, image in read])).tolist()
                found += [(str(path), distance) for (path, _), distance in zip(read, distances, strict=True)]
            count.advance(len(part))
    if not found:
        one = skipped[0]
        raise SampleError(f"none of the {len(skipped):,} images can be read: {one.path} {one.reason}.")
    found.sort(key=lambda item: item[1])
    return ImageDistances(metric, reference, found[:top], len(found), skipped)


def _read(reference: ReferenceImage, file: Candidate, skipped: list[SkippedImage]) -> Pixels | None:
    """Return an image; None for one of a folder that cannot be read, which is added to `skipped`."""
    if file.is_named:
        return reference.read_other(file.path)
    try:
        image = _decode(file.path, reference.size, reference.fit)
    except UnreadableItemError as error:
        skipped.append(SkippedImage(file.path, str(error)))
        return None
    return reference.of_equal_size(image, file.path)


def write_map(metric: ImageMetric, reference: ReferenceImage, path: Path, out: Path) -> None:
    """Write a picture of where an image differs from the reference. Raises `FastDPSError` if it cannot be written."""
    image = reference.read_other(path)
    with torch.no_grad():
        distances = metric(_to_tensor(reference.pixels), _to_tensor(image), spatial=True)[0].cpu().numpy()
    names = reference.path.name, path.name
    title = f"where they differ by {title_of(metric)}"
    write_sheet(draw_difference(reference.pixels, image, distances, names, title), out)


def title_of(metric: ImageMetric) -> str:
    """Return the backbone and the context of a metric, for headings."""
    context = metric.describe_context(lambda judge: shorten(judge, JUDGE_COLUMNS))
    return f"{metric.metric.backbone.name} ({context})"


def _to_tensor(image: Pixels) -> Tensor:
    return torch.tensor(image).movedim(-1, 0)


def find_device(name: str | None) -> torch.device:
    """Return the device of a name, by default a GPU if there is one. Raises `ConfigError` if it cannot be used."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise ConfigError(f"--device {name} cannot be used: {str(error).splitlines()[0]}. Try --device cpu.") from error
    return device
