"""Check images given by users, and convert them to the input of a backbone.

Supported are tensors (N, 3, H, W) or (3, H, W) in RGB, float in [0, 1] or uint8, and what `read_images` reads. Every
rejection says how to fix the input: other libraries use other ranges and layouts, and the distances of wrong images
look like any others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdps.errors import ImageError
from fastdps.metric.read_images import AnyImages, is_read, read_images

#: Tolerance of the range check: an optimizer may step slightly outside [0, 1], another range is a mistake.
RANGE_SLACK = 0.1
Images = AnyImages


def batched(images: Images, name: str, *, check_values: bool = True, size: tuple[int, int] | None = None) -> Tensor:
    """Return images as one batch (N, 3, H, W); tensors keep their type and size.

    Args:
        images: A tensor (N, 3, H, W) or (3, H, W), a list of tensors (3, H, W), or what `read_images` takes.
        name: What error messages call the images.
        size: (height, width) in pixels to which images that are not tensors are resized.
        check_values: Check the range of float images, which synchronises with a GPU. Skipped while torch compiles or
            exports.

    Raises:
        ImageError: The images have an unsupported shape, type or range.
    """
    if is_read(images):
        try:
            batch = read_images(images, size)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error
    elif isinstance(images, Tensor):
        batch = images if images.dim() == 4 else images[None]
        _check_shape(images, name)
    else:
        batch = _stacked(images, name)  # type: ignore[arg-type]
    _check_type(batch, name)
    if check_values and batch.is_floating_point() and not torch.compiler.is_compiling():
        _check_values(batch, name)
    return batch


def to_unit_range(batch: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a batch on the device as float in [0, 1]. uint8 is moved before it is converted, as it is smaller."""
    moved = batch.to(device)
    return moved.to(dtype) / 255 if moved.dtype == torch.uint8 else moved.to(dtype)


def check_same_size(x: Tensor, y: Tensor, names: tuple[str, str]) -> None:
    """Raise `ImageError` unless both batches have the same image size and count; one may be a single image."""
    first, second = names
    if x.shape[2:] != y.shape[2:]:
        raise ImageError(
            f"{first} has images of {_size(x)} and {second} of {_size(y)} (height x width): both must have the same "
            f"size. Resize one of them, e.g. torchvision.transforms.functional.resize({second}, {list(x.shape[2:])})."
        )
    if len(x) != len(y) and 1 not in (len(x), len(y)):
        raise ImageError(
            f"{first} has {len(x)} images and {second} has {len(y)}: give the same number of both, or one image to "
            "compare with all others."
        )


def _stacked(images: Sequence[Tensor], name: str) -> Tensor:
    """Stack single images into a batch."""
    if not isinstance(images, Sequence) or not images or not all(isinstance(image, Tensor) for image in images):
        kind = type(images[0] if isinstance(images, Sequence) and images else images)
        what = "no image" if isinstance(images, Sequence) and not images else f"{kind.__module__}.{kind.__name__}"
        raise ImageError(
            f"{name} must be a tensor (N, 3, H, W) or (3, H, W), or a list of tensors (3, H, W), not {what}. "
            "Paths, PIL images and arrays (H, W, 3) are taken as well, singly or in lists."
        )
    for number, image in enumerate(images):
        if image.dim() != 3:
            raise ImageError(
                f"{name}[{number}] has shape {tuple(image.shape)}; a list must hold single images (3, H, W)."
            )
        _check_shape(image, f"{name}[{number}]")
        if image.shape != images[0].shape or image.dtype != images[0].dtype:
            raise ImageError(
                f"{name}[{number}] is {_size(image[None])} of {image.dtype}, but {name}[0] is {_size(images[0][None])} "
                f"of {images[0].dtype}: all must have the same size and type. Resize or convert them first."
            )
    return torch.stack(list(images))


def _check_shape(images: Tensor, name: str) -> None:
    shape = tuple(images.shape)
    if len(shape) not in (3, 4):
        raise ImageError(f"{name} has shape {shape}; images are (N, 3, H, W), or (3, H, W) for a single one.")
    if 0 in shape:
        raise ImageError(f"{name} has shape {shape}: it holds no image.")
    if shape[-3] == 3:
        return
    if shape[-1] == 3:
        remedy = f"The channels are last: pass {name}.movedim(-1, -3)."
    elif shape[-3] == 1:
        remedy = f"For greyscale images pass {name}.expand({'-1, ' * (len(shape) - 3)}3, -1, -1)."
    elif shape[-3] == 4:
        remedy = f"If the fourth channel is alpha, drop it: {name}[{':, ' * (len(shape) - 3)}:3]."
    else:
        remedy = "Pass RGB images."
    raise ImageError(f"{name} has shape {shape}; images are (N, 3, H, W), or (3, H, W) for a single one. {remedy}")


def _check_type(batch: Tensor, name: str) -> None:
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        raise ImageError(
            f"{name} has type {batch.dtype}; images are float in [0, 1], or torch.uint8. For integers from 0 to 255 "
            f"pass {name}.to(torch.uint8)."
        )


def _check_values(batch: Tensor, name: str) -> None:
    """Check the range of float images. Comparisons with NaN are false, so NaN is found here, too."""
    low, high = (value.item() for value in batch.detach().aminmax())
    if low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK:
        return
    if low != low or high != high:
        count = int((~batch.detach().isfinite()).flatten(1).any(dim=1).sum())
        raise ImageError(f"{name} has NaN values in {count} of {len(batch)} images. Fix or remove these images.")
    if low >= 0 and high <= 256:
        remedy = f"For images from 0 to 255 pass {name} / 255, or {name}.to(torch.uint8)."
    elif low >= -1 - RANGE_SLACK and high <= 1 + RANGE_SLACK:
        remedy = f"For images in [-1, 1], as `lpips` takes them, pass ({name} + 1) / 2."
    else:
        remedy = f"If they were normalised, undo it; if an optimizer produced them, pass {name}.clamp(0, 1)."
    raise ImageError(f"{name} has values from {low:.4g} to {high:.4g}; float images are in [0, 1]. {remedy}")


def _size(batch: Tensor) -> str:
    return f"{batch.shape[2]} x {batch.shape[3]}"
