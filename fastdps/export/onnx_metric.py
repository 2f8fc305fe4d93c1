"""Compare images with an exported ONNX model, by numpy and onnxruntime alone: torch is not imported.

Files are decoded with Pillow and simplejpeg; arrays need neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import ConfigError, FastDPSError, ImageError
from fastdps.metric.arrays import arrays_of, resize_array
from fastdps.runtime.json_files import Maybe, check, parse_json

#: Pairs that are compared at a time.
BATCH = 16
#: Tolerance of the range check of floats, as for tensors.
RANGE_SLACK = 0.1
#: The part of the card that is used here. Files of 0.1.0 lack the sizes.
_CARD = {
    "context": Maybe([str]),
    "judge?": Maybe(str),
    "metric": {"backbone": str, "image_size?": Maybe([int]), "smallest_side?": int},
}


class RankedArrays(NamedTuple):
    """Candidates sorted by distance, the nearest first.

    Attributes:
        indices: Positions of the candidates, int64 (N,).
        distances: Their distances, float32 (N,), ascending.
    """

    indices: NDArray[np.int64]
    distances: NDArray[np.float32]


class OnnxMetric:
    """A metric in an ONNX file. Returned by `fastdps.load_onnx`.

    Images are paths, PIL images, or arrays (H, W, 3) or (H, W), uint8 or float in [0, 1]; singly or in lists. An array
    (N, H, W, 3) is several images. They are resized to `size` if the metric has one.

    Args:
        session: The session of onnxruntime.
        card: The model card in the file.

    Attributes:
        card: The model card: context, training data, scores, licence.

    Example:
        >>> metric = fastdps.load_onnx("mine.onnx")  # doctest: +SKIP
        >>> metric("a.jpg", ["b.jpg", "c.jpg"])  # doctest: +SKIP
        array([0.231, 0.118], dtype=float32)
    """

    def __init__(self, session: Any, card: Mapping[str, Any]) -> None:
        self._session = session
        self.card = card

    @property
    def context(self) -> tuple[str, ...] | None:
        """The distortions of the context, least disruptive first; None for a metric without a ranking."""
        found = self.card["context"]
        return None if found is None else tuple(found)

    @property
    def judge(self) -> str | None:
        """The name of the judge whose judgements the metric was adapted to; None for other metrics."""
        return self.card.get("judge")

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of the images that the metric was adapted to; None if that is not known."""
        found = self.card["metric"].get("image_size")
        return None if found is None else (found[0], found[1])

    def __call__(self, x: object, y: object) -> NDArray[np.float32]:
        """Return the distances of image pairs.

        Args:
            x: N images, or one that is compared with each of `y`.
            y: N images, or one that is compared with each of `x`.

        Returns:
            Distances, float32 (N,).

        Raises:
            ImageError: The images have an unsupported shape, type, size or range, or do not match each other.
            SampleError: A file does not exist, or cannot be decoded.
        """
        return self._compare(self._read(x, "x"), self._read(y, "y"))

    def rank(self, ref: object, candidates: object, *, top: int | None = None) -> RankedArrays:
        """Sort candidates by their distance to one image.

        Args:
            ref: One image.
            candidates: Images.
            top: Number of nearest candidates to return, None for all.

        Returns:
            Indices and distances of the candidates, the nearest first.

        Raises:
            ImageError: `ref` is not one image, or the images are not supported.
        """
        reference = self._read(ref, "ref")
        if len(reference) != 1:
            raise ImageError(f"ref must be one image, not {len(reference)}. Call rank for each of them.")
        distances = self._compare(reference, self._read(candidates, "candidates"))
        indices = np.argsort(distances, kind="stable")[:top]
        return RankedArrays(indices, distances[indices])

    def __repr__(self) -> str:
        what = self.judge or ",".join(self.context or ()) or "no context"
        return f"OnnxMetric({self.card['metric']['backbone']}: {what})"

    def _compare(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the distances of two batches of images, one of which may be a single image."""
        if first.shape[1:] != second.shape[1:]:
            sizes = " and ".join(f"{images.shape[2]} x {images.shape[3]}" for images in (first, second))
            raise ImageError(f"the images have {sizes} pixels (height x width): both must have the same size.")
        if len(first) != len(second) and 1 not in (len(first), len(second)):
            raise ImageError(
                f"x has {len(first)} images and y has {len(second)}: give the same number of both, or one image to "
                "compare with all others."
            )
        pairs = max(len(first), len(second))
        return np.concatenate([self._run(first, second, start, pairs) for start in range(0, pairs, BATCH)])

    def _run(
        self, first: NDArray[np.float32], second: NDArray[np.float32], start: int, pairs: int
    ) -> NDArray[np.float32]:
        """Return the distances of one batch of pairs; a single image is paired with each of the others."""
        count = min(BATCH, pairs - start)
        x, y = (
            np.repeat(images, count, axis=0) if len(images) < pairs else images[start : start + count]
            for images in (first, second)
        )
        (distances,) = self._session.run(["distance"], {"x": x, "y": y})
        return distances

    def _read(self, images: object, name: str) -> NDArray[np.float32]:
        """Return images as one batch, float32 (N, 3, H, W) in [0, 1]."""
        try:
            found = [self._unit(pixels) for image in _listed(images) for pixels in _arrays(image)]
            if not found:
                raise ImageError("there are no images: the list is empty.")
            for number, pixels in enumerate(found):
                if pixels.shape != found[0].shape:
                    raise ImageError(
                        f"image {number} has {pixels.shape[0]} x {pixels.shape[1]} pixels and image 0 has "
                        f"{found[0].shape[0]} x {found[0].shape[1]} (height x width): all must have one size."
                    )
            smallest = self.card["metric"].get("smallest_side", 1)
            if min(found[0].shape[:2]) < smallest:
                raise ImageError(f"images must have at least {smallest} x {smallest} pixels. Resize them.")
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error
        return np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2))

    def _unit(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return an image as float32 in [0, 1], resized to the size of the metric."""
        if pixels.dtype != np.uint8:
            pixels = pixels.astype(np.float32)
        resized = pixels if self.size is None else resize_array(pixels, self.size)
        if resized.dtype == np.uint8:
            return resized.astype(np.float32) / np.float32(255)
        low, high = resized.min(), resized.max()
        if not (low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK):  # also for NaN
            raise ImageError(
                f"float images must be in [0, 1], but values are from {low:.4g} to {high:.4g}. For images from 0 to "
                "255 pass array.astype(numpy.uint8)."
            )
        return resized


def load_onnx(path: str | PathLike[str], *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> OnnxMetric:
    """Load a metric that `fastdps export --format onnx` wrote, without torch: numpy and onnxruntime are enough.

    Args:
        path: The ONNX file.
        providers: Where onnxruntime computes, such as ["CUDAExecutionProvider"]; see its documentation.

    Returns:
        The metric.

    Raises:
        ConfigError: onnxruntime is not installed, or does not have these providers.
        FastDPSError: The file is missing, damaged or was not written by fastdps.

    Example:
        >>> metric = fastdps.load_onnx("mine.onnx")  # doctest: +SKIP
        >>> metric.rank("a.jpg", ["b.jpg", "c.jpg"]).indices  # doctest: +SKIP
        array([1, 0])
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"ONNX files need onnxruntime ({error}): pip install onnxruntime.") from error
    file = Path(fspath(path))
    if not file.is_file():
        raise FastDPSError(f"{file} does not exist. `fastdps export RUN --format onnx --out {file}` writes it.")
    if missing := [name for name in providers if name not in onnxruntime.get_available_providers()]:
        raise ConfigError(
            f"this onnxruntime has no {missing[0]}; it has {', '.join(onnxruntime.get_available_providers())}."
        )
    try:
        session = onnxruntime.InferenceSession(str(file), providers=list(providers))
    except Exception as error:  # onnxruntime raises a type of its own for each status
        raise FastDPSError(f"{file} cannot be read as an ONNX model: {error}. Export it again.") from error
    return OnnxMetric(session, _card_in(session, file))


def _card_in(session: Any, file: Path) -> Mapping[str, Any]:
    """Return the model card in the metadata of a model. Raises `FastDPSError` if the model is not from fastdps."""
    text = session.get_modelmeta().custom_metadata_map.get("fastdps")
    names = {one.name for one in session.get_inputs()}
    if text is None or names != {"x", "y"} or [one.name for one in session.get_outputs()] != ["distance"]:
        raise FastDPSError(
            f"{file} is not a metric of fastdps: it lacks the card, or the inputs x and y and the output distance. "
            "Export the metric with `fastdps export --format onnx`."
        )
    try:
        card = parse_json(text)
        check(card, _CARD)
        size = card["metric"].get("image_size")
        if size is not None and not (len(size) == 2 and all(1 <= side <= 1 << 16 for side in size)):
            raise ValueError(f"metric.image_size is {size}")
    except ValueError as error:
        raise FastDPSError(f"{file} is damaged: its card cannot be read, {error}. Export it again.") from error
    return card


def _listed(images: object) -> Sequence[object]:
    return images if isinstance(images, Sequence) and not isinstance(images, str) else [images]


def _arrays(image: object) -> Iterator[NDArray[Any]]:
    found = arrays_of(image)
    if found is None:
        kind = type(image)
        raise ImageError(
            f"{kind.__module__}.{kind.__name__} is not an image: pass a path, a PIL image or an array (H, W, 3)."
        )
    yield from found
