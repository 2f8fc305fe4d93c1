"""Images as people give them, checked once and made what a backbone takes.

Taken are tensors (N, 3, H, W) or (3, H, W) in RGB, float in [0, 1] or uint8. What is refused is refused with the
remedy, because other libraries take other ranges and layouts and the distances of wrong images look like any others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdps.errors import ImageError

#: How far float images may be outside [0, 1]: a step of an optimizer is no mistake, another range is.
RANGE_SLACK = 0.1
Images = Tensor | Sequence[Tensor]


def batched(images: Images, name: str, *, check_values: bool = True) -> Tensor:
    """Images as one batch (N, 3, H, W), of the type they have. `name` is what messages call them.

    `check_values` looks at every value of float images, for which a GPU has to be waited for; it is left out while
    torch compiles or exports. Raises `ImageError` that says what was given and what to do.
    """
    if isinstance(images, Tensor):
        batch = images if images.dim() == 4 else images[None]
        _check_shape(images, name)
    else:
        batch = _stacked(images, name)
    _check_type(batch, name)
    if check_values and batch.is_floating_point() and not torch.compiler.is_compiling():
        _check_values(batch, name)
    return batch


def to_unit_range(batch: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A batch on the device as float in [0, 1]; uint8 is moved first, because it is the smaller."""
    moved = batch.to(device)
    return moved.to(dtype) / 255 if moved.dtype == torch.uint8 else moved.to(dtype)


def check_same_size(x: Tensor, y: Tensor, names: tuple[str, str]) -> None:
    """Raise `ImageError` unless both batches have images of one size, and as many, or one of them a single image."""
    first, second = names
    if x.shape[2:] != y.shape[2:]:
        raise ImageError(
            f"{first} are images of {_size(x)} and {second} of {_size(y)} (height x width): a distance needs one size. "
            f"Resize one of them, e.g. torchvision.transforms.functional.resize({second}, {list(x.shape[2:])})."
        )
    if len(x) != len(y) and 1 not in (len(x), len(y)):
        raise ImageError(
            f"{first} are {len(x)} images and {second} {len(y)}: give as many of both, or one that is compared with "
            "all of the others."
        )


def _stacked(images: Sequence[Tensor], name: str) -> Tensor:
    """A batch of single images."""
    if not isinstance(images, Sequence) or not images or not all(isinstance(image, Tensor) for image in images):
        kind = type(images[0] if isinstance(images, Sequence) and images else images)
        what = "no image" if isinstance(images, Sequence) and not images else f"{kind.__module__}.{kind.__name__}"
        raise ImageError(
            f"{name} must be a tensor (N, 3, H, W) or (3, H, W), or a list of tensors (3, H, W), not {what}. "
            "torchvision.io.decode_image(path, 'RGB') reads a file as one, torch.from_numpy(array).movedim(-1, -3) "
            "makes one of an array (H, W, 3)."
        )
    for number, image in enumerate(images):
        if image.dim() != 3:
            raise ImageError(
                f"{name}[{number}] is of shape {tuple(image.shape)}; a list holds single images (3, H, W)."
            )
        _check_shape(image, f"{name}[{number}]")
        if image.shape != images[0].shape or image.dtype != images[0].dtype:
            raise ImageError(
                f"{name}[{number}] is {_size(image[None])} of {image.dtype}, and {name}[0] is {_size(images[0][None])} "
                f"of {images[0].dtype}: all must be of one size and type. Resize or convert them first."
            )
    return torch.stack(list(images))


def _check_shape(images: Tensor, name: str) -> None:
    shape = tuple(images.shape)
    if len(shape) not in (3, 4):
        raise ImageError(f"{name} is of shape {shape}; images are (N, 3, H, W), or (3, H, W) for a single one.")
    if 0 in shape:
        raise ImageError(f"{name} is of shape {shape}: there is no image in it.")
    if shape[-3] == 3:
        return
    if shape[-1] == 3:
        remedy = f"The channels are last: give {name}.movedim(-1, -3)."
    elif shape[-3] == 1:
        remedy = f"For grey images give {name}.expand({'-1, ' * (len(shape) - 3)}3, -1, -1)."
    elif shape[-3] == 4:
        remedy = f"If the fourth channel is opacity, leave it out: {name}[{':, ' * (len(shape) - 3)}:3]."
    else:
        remedy = "Give RGB images."
    raise ImageError(f"{name} is of shape {shape}; images are (N, 3, H, W), or (3, H, W) for a single one. {remedy}")


def _check_type(batch: Tensor, name: str) -> None:
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        raise ImageError(
            f"{name} is of {batch.dtype}; images are float in [0, 1], or torch.uint8. For whole numbers of 0 to 255 "
            f"give {name}.to(torch.uint8)."
        )


def _check_values(batch: Tensor, name: str) -> None:
    """The range of float images; comparing with NaN is always false, so that NaN is found here too."""
    low, high = (value.item() for value in batch.detach().aminmax())
    if low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK:
        return
    if low != low or high != high:
        count = int((~batch.detach().isfinite()).flatten(1).any(dim=1).sum())
        raise ImageError(f"{name} has values that are not numbers (NaN), in {count} of {len(batch)} images. Mend them.")
    if low >= 0 and high <= 256:
        remedy = f"For images of 0 to 255 give {name} / 255, or {name}.to(torch.uint8)."
    elif low >= -1 - RANGE_SLACK and high <= 1 + RANGE_SLACK:
        remedy = f"For images in [-1, 1], as `lpips` has them, give ({name} + 1) / 2."
    else:
        remedy = f"If they were normalised, undo it; if an optimizer made them, give {name}.clamp(0, 1)."
    raise ImageError(f"{name} has values from {low:.4g} to {high:.4g}; float images are in [0, 1]. {remedy}")


def _size(batch: Tensor) -> str:
    return f"{batch.shape[2]} x {batch.shape[3]}"
