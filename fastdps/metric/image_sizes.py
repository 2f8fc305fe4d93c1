"""The smallest images that a backbone takes. Its layers are run on images without data, so no weights are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastdps.errors import ConfigError, ImageError
from fastdps.metric.backbones import Backbone, backbone_class

#: Side in pixels that is large enough for every backbone.
_LARGE_ENOUGH = 512


def check_image_size(name: str, taps: Sequence[int] | None, size: tuple[int, int], what: object) -> None:
    """Check that a backbone and its taps exist, and that images are not too small for it.

    Args:
        name: The name of the backbone.
        taps: Indices of the tapped layers; None for the preset.
        size: (height, width) in pixels of the images.
        what: The images, for the message, such as the location of their set.

    Raises:
        ConfigError: The model or a tap is unknown, or the images are too small.

    Example:
        >>> check_image_size("alexnet", None, (64, 64), "shards/sample/train")
    """
    run = backbone_class(name).probe(name, taps)
    if _fits(run, *size) or not _fits(run, _LARGE_ENOUGH, _LARGE_ENOUGH):
        return  # layers that do not run one after another at any size are reported by `Backbone`
    smallest = _smallest_side(run)
    raise ConfigError(
        f"{what}: images of {size[0]} x {size[1]} pixels are too small for {name}, which needs at least {smallest} x "
        f"{smallest}. Give --size {smallest} or more, pack the images larger, or choose another backbone."
    )


def smallest_side(name: str, taps: Sequence[int] | None) -> int:
    """Return the side in pixels of the smallest square image that a backbone takes.

    Args:
        name: The name of the backbone.
        taps: Indices of the tapped layers; None for the preset.

    Raises:
        ConfigError: The model or a tap is unknown.

    Example:
        >>> smallest_side("alexnet", None)
        31
    """
    return _smallest_side(backbone_class(name).probe(name, taps))


def _smallest_side(run: Callable[[int, int], object]) -> int:
    low, high = 0, _LARGE_ENOUGH  # too small, large enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(run, middle, middle) else (middle, high)
    return high


@torch.no_grad()
def _fits(run: Callable[[int, int], object], height: int, width: int) -> bool:
    try:
        run(height, width)
    except Exception:  # layers made for other inputs raise various errors
        return False
    return True


class SizeErrors:
    """A context manager that turns a backbone's error on images that are too small into an `ImageError`.

    Args:
        backbone: The backbone.
        batch: The images, (N, 3, H, W).
    """

    def __init__(self, backbone: Backbone, batch: Tensor) -> None:
        self._backbone, self._batch = backbone, batch

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, RuntimeError) or torch.compiler.is_compiling():
            return
        height, width = self._batch.shape[2:]
        smallest = smallest_side(self._backbone.name, self._backbone.taps)
        if min(height, width) < smallest:
            raise ImageError(
                f"Images of {height} x {width} are too small for {self._backbone.name}, which needs at least "
                f"{smallest} x {smallest}. Resize them, or choose another backbone."
            ) from error
