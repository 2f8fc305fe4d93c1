"""Images in any common form as one batch of tensors: paths, PIL images, NumPy arrays and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from fastdps.errors import ImageError
from fastdps.metric.arrays import arrays_of

#: One image: a path, a PIL image, an array (H, W, 3) or (H, W), or a tensor (3, H, W).
OneImage = str | PathLike[str] | Pillow.Image | NDArray[np.generic] | Tensor
#: One image or several; an array (N, H, W, 3) or a tensor (N, 3, H, W) are several.
AnyImages = OneImage | Sequence[OneImage]


def read_images(images: AnyImages, size: int | tuple[int, int] | None = None) -> Tensor:
    """Return images as one batch, resized to one size.

    Files are decoded as `fastdps pack` decodes them: upright, RGB, 8 bits. Resizing is bilinear with antialiasing and
    ignores the aspect ratio, as packing with `--fit squash` does.

    Args:
        images: One image or a list of images: paths, PIL images, NumPy arrays (H, W, 3) or (H, W), or tensors
            (3, H, W); arrays and tensors of integers from 0 to 255, or of floats in [0, 1]. An array (N, H, W, 3) and a
            tensor (N, 3, H, W) are several images.
        size: (height, width) in pixels, or the side of a square; None to keep the size, which must then be the same
            for all.

    Returns:
        Images (N, 3, H, W): uint8, or float in [0, 1] if one of them is.

    Raises:
        ImageError: An image has another form, or sizes differ and none is given.
        SampleError: A file does not exist, or cannot be decoded.

    Example:
        >>> import numpy as np
        >>> read_images([np.zeros((48, 64, 3), np.uint8), np.zeros((30, 30), np.uint8)], size=32).shape
        torch.Size([2, 3, 32, 32])
    """
    wanted = (size, size) if isinstance(size, int) else size
    found: list[Tensor] = [tensor for image in _listed(images) for tensor in _tensors(image)]
    parts = [_resized(tensor, wanted) for tensor in found]
    if not parts:
        raise ImageError("there are no images: the list is empty.")
    for number, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise ImageError(
                f"image {number} has {_text(part)} pixels and image 0 has {_text(parts[0])} (height x width): all must "
                f"have one size. Pass size={min(parts[0].shape[1:])} to resize them."
            )
    if len({part.dtype for part in parts}) > 1:
        parts = [part if part.is_floating_point() else part / 255 for part in parts]
    return torch.stack([part.float() if part.is_floating_point() else part for part in parts])


def is_read(images: object) -> bool:
    """Return whether images are in a form that `read_images` turns into tensors: not a tensor or a list of tensors."""
    if isinstance(images, str | PathLike | Pillow.Image | np.ndarray):
        return True
    return isinstance(images, Sequence) and any(
        isinstance(image, str | PathLike | Pillow.Image | np.ndarray) for image in images
    )


def _listed(images: AnyImages) -> Sequence[OneImage]:
    if isinstance(images, str | PathLike | Pillow.Image | np.ndarray | Tensor):
        return [images]
    if isinstance(images, Sequence):
        return images
    raise _unsupported(images)


def _tensors(image: OneImage) -> list[Tensor]:
    """Return an image as a tensor (3, H, W), or those of a batch."""
    if (arrays := arrays_of(image)) is not None:
        return [torch.from_numpy(np.ascontiguousarray(pixels)).movedim(-1, 0) for pixels in arrays]
    if isinstance(image, Tensor) and image.dim() in (3, 4) and image.shape[-3] == 3:
        return list(image.unbind()) if image.dim() == 4 else [image]
    raise _unsupported(image)


def _resized(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or tuple(image.shape[1:]) == size:
        return image
    return resize(image, list(size), antialias=True)


def _text(image: Tensor) -> str:
    return f"{image.shape[1]} x {image.shape[2]}"


def _unsupported(image: object) -> ImageError:
    kind = type(image)
    shape = f" of shape {tuple(image.shape)}" if isinstance(image, Tensor) else ""
    return ImageError(
        f"{kind.__module__}.{kind.__name__}{shape} is not an image: pass a path, a PIL image, an array (H, W, 3), or a "
        "tensor (3, H, W)."
    )
