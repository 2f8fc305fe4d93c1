"""The six distortions: draw a plan of parameters, then apply it to a batch on its device.

    ids ----------- draw_plan --> DistortionPlan (n, D, 4)   a pure function of (seed, epoch, sample id)
    images, plan -- apply_plan --> (n, D, 3, H, W)            batched, no loop over images

Geometric distortions and darkening are Kornia's functional operations. Hue rotation and blur are implemented here with
fewer passes over the images. The result for an image does not depend on its batch, to the last bit.

Parameters are those of Pihlgren et al. 2023 (their code). A distortion is an entry of `DISTORTIONS`; its position there
is its index in every axis of length D.

Shapes: n images, D distortions, P parameters of one distortion, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from kornia.enhance import adjust_brightness_accumulative
from kornia.geometry.transform import get_rotation_matrix2d, remap, translate, warp_affine
from torch import Tensor
from torch.nn import functional as F

from fastdps.contexts.interpolation import Interpolation
from fastdps.contexts.philox import uniforms

#: Height and width of the Gaussian kernel, in pixels (swapped in the names of the paper's code).
BLUR_KERNEL = (21, 11)
#: A counter gives four random numbers, so a distortion has at most four parameters.
MAX_PARAMETERS = 4
#: Number of the random stream that draws the sampling of each image, with the interpolation "mixed".
SAMPLING_STREAM = 1 << 15

#: Sampling of geometric distortions: one of Kornia's modes for all images, or for each image True for nearest and False
#: for bilinear, bool (n,).
Sampling = str | Tensor


@dataclass(frozen=True)
class Parameter:
    """A number that is drawn for each image, uniform in [low, high).

    Attributes:
        name: Its name.
        low: The lower bound.
        high: The upper bound.
        unit: Its unit, for people.
    """

    name: str
    low: float
    high: float
    unit: str


@dataclass(frozen=True)
class Distortion:
    """A kind of distortion.

    Attributes:
        parameters: What is drawn for each image.
        apply: Maps images (n, 3, H, W), parameters (n, P) and the sampling of geometric distortions to distorted images
            of the same shape.

    Raises:
        ValueError: There are no parameters, or more than `MAX_PARAMETERS`.
    """

    parameters: tuple[Parameter, ...]
    apply: Callable[[Tensor, Tensor, Sampling], Tensor]

    def __post_init__(self) -> None:
        if not 1 <= len(self.parameters) <= MAX_PARAMETERS:
            raise ValueError(f"a distortion has 1 to {MAX_PARAMETERS} parameters, not {len(self.parameters)}")


def _warp_about_centre(images: Tensor, angle: Tensor, scale: Tensor, sampling: Sampling) -> Tensor:
    height, width = images.shape[-2:]
    centre = torch.stack([torch.full_like(angle, (size - 1) / 2) for size in (width, height)], dim=1)
    if isinstance(sampling, str):
        matrix = get_rotation_matrix2d(centre, angle, scale[:, None].expand(-1, 2))
        return warp_affine(images, matrix, (height, width), mode=sampling)
    # Bilinear sampling at positions rounded to pixels is nearest, so one pass serves both.
    inverse = get_rotation_matrix2d(centre, -angle, scale.reciprocal()[:, None].expand(-1, 2))
    y, x = torch.meshgrid(
        *(torch.arange(size, device=images.device, dtype=images.dtype) for size in (height, width)), indexing="ij"
    )
    positions = inverse @ torch.stack([x.flatten(), y.flatten(), torch.ones_like(x.flatten())])
    positions = torch.where(sampling[:, None, None], positions.round(), positions).unflatten(2, (height, width))
    return remap(images, positions[:, 0], positions[:, 1], mode="bilinear", align_corners=True)


def _rotate(images: Tensor, parameters: Tensor, sampling: Sampling) -> Tensor:
    angle = parameters[:, 0]
    return _warp_about_centre(images, angle, torch.ones_like(angle), sampling)


def _translate(images: Tensor, parameters: Tensor, sampling: Sampling) -> Tensor:
    height, width = images.shape[-2:]
    shift = torch.stack([parameters[:, 0] * width, parameters[:, 1] * height], dim=1).round()
    # Of whole pixels, so all samplings are equal but for rounding.
    return translate(images, shift, mode=sampling if isinstance(sampling, str) else "nearest")


def _darken(images: Tensor, parameters: Tensor, _: Sampling) -> Tensor:
    return adjust_brightness_accumulative(images, parameters[:, 0])


def _color(images: Tensor, parameters: Tensor, _: Sampling) -> Tensor:
    """Rotate the hue as a round trip through HSV would, without computing the saturation and without branches.

    Scale the channels so that the lowest is 0 and the highest 1. With a = |green - blue| and the hue h counted from red
    in sixths of a turn, |h| = 3 (1 - red) + a (2 red - 1), and h has the sign of green - blue. Conversely, a channel is
    1 within a sixth of a turn of its own hue, 0 from two sixths on, and linear in between. The hue of grey is
    undefined, but is multiplied by its chroma of zero.
    """
    red, green, blue = images.unbind(dim=1)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(low)
    divisor = chroma.clamp_min(torch.finfo(chroma.dtype).tiny)
    redness, lean = (red - low).div_(divisor), (green - blue).div_(divisor)
    hue = (2 * redness).sub_(1).mul_(lean.abs()).sub_(redness, alpha=3).add_(3).div_(6).copysign_(lean)
    own = torch.arange(3, device=images.device, dtype=images.dtype) / 3
    distance = hue[:, None] + (parameters[:, :1] - own)[..., None, None]  # in turns, of (n, 3, H, W)
    distance.sub_(distance.round()).abs_().clamp_(1 / 6, 2 / 6)
    return torch.addcmul(low.add_(chroma, alpha=2)[:, None], chroma[:, None], distance, value=-6)


def _blur(images: Tensor, parameters: Tensor, _: Sampling) -> Tensor:
    n, channels, height, width = images.shape
    vertical, horizontal = (
        _blur_matrices(parameters[:, :1], taps, size) for taps, size in zip(BLUR_KERNEL, (height, width), strict=True)
    )
    rows = torch.bmm(images.reshape(n, channels * height, width), horizontal.mT)
    return torch.matmul(vertical[:, None], rows.view(images.shape))


def _blur_matrices(sigma: Tensor, taps: int, size: int) -> Tensor:
    """Return the Gaussian blur of a line of `size` pixels as matrices (n, size, size), with reflected borders."""
    radius = taps // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    kernel = (-0.5 * (offsets / sigma).square()).softmax(dim=1)
    # The rows are one element too long for their matrix, so that each row starts one position further to the right.
    rows = F.pad(kernel[:, None].expand(-1, size, -1), (0, size))
    padded = rows.flatten(1)[:, :-size].unflatten(1, (size, size + 2 * radius))
    matrices = padded[..., radius:-radius].clone()
    matrices[..., 1 : radius + 1] += padded[..., :radius].flip(-1)
    matrices[..., -radius - 1 : -1] += padded[..., -radius:].flip(-1)
    return matrices


def _zoom_in(images: Tensor, parameters: Tensor, sampling: Sampling) -> Tensor:
    scale = parameters[:, 0]
    return _warp_about_centre(images, torch.zeros_like(scale), scale, sampling)


#: The distortions of the paper, by name.
DISTORTIONS: Mapping[str, Distortion] = {
    "rotate": Distortion((Parameter("angle", 30.0, 330.0, "degrees, counter-clockwise"),), _rotate),
    "translate": Distortion(
        (
            Parameter("dx", -0.5, 0.5, "image widths, rounded to whole pixels"),
            Parameter("dy", -0.5, 0.5, "image heights, rounded to whole pixels"),
        ),
        _translate,
    ),
    "darken": Distortion((Parameter("factor", 0.1, 0.5, "of the brightness"),), _darken),
    "color": Distortion((Parameter("hue_shift", -0.5, 0.5, "turns of the hue circle"),), _color),
    "blur": Distortion((Parameter("sigma", 4.0, 10.0, "pixels"),), _blur),
    "zoom_in": Distortion((Parameter("scale", 1.1, 2.0, "times"),), _zoom_in),
}
NAMES: tuple[str, ...] = tuple(DISTORTIONS)


@dataclass(frozen=True)
class DistortionPlan:
    """The parameters of every distortion for every image of a batch.

    Attributes:
        distortions: The D distortions by name.
        values: (n, D, 4) float32. Distortion d uses the first P of the four values, in the order of its `parameters`.
        nearest: Where the interpolation "mixed" samples the nearest pixel, in half of the images, bool (n,).
    """

    distortions: Mapping[str, Distortion]
    values: Tensor
    nearest: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """Return the parameters (n, P) of one distortion."""
        return self.values[:, list(self.distortions).index(name), : len(self.distortions[name].parameters)]

    def to(self, device: torch.device | str) -> DistortionPlan:
        """Return the plan on another device."""
        values, nearest = (part.to(device, non_blocking=True) for part in (self.values, self.nearest))
        return DistortionPlan(self.distortions, values, nearest)


def draw_plan(
    ids: Tensor, *, seed: int, epoch: int, distortions: Mapping[str, Distortion] = DISTORTIONS
) -> DistortionPlan:
    """Draw the parameters of all distortions for a batch of samples.

    The parameters of a sample depend only on (seed, epoch, sample id), and are the same on all devices. The parameters
    of a distortion do not change when others are appended.

    Args:
        ids: Sample ids, int64 (n,).
        seed: The seed.
        epoch: The epoch.
        distortions: The distortions by name.

    Returns:
        The plan, on the device of `ids`.

    Raises:
        ValueError: `ids` is not a vector of int64.

    Example:
        >>> draw_plan(torch.arange(8), seed=0, epoch=0)["translate"].shape
        torch.Size([8, 2])
    """
    low, high = torch.zeros(2, len(distortions), MAX_PARAMETERS, dtype=torch.float64)
    for d, distortion in enumerate(distortions.values()):
        for p, parameter in enumerate(distortion.parameters):
            low[d, p], high[d, p] = parameter.low, parameter.high
    low, high = low.to(ids.device), high.to(ids.device)
    # In one call: a second one would double the time of drawing a plan.
    drawn = uniforms(seed, epoch, ids, [*range(len(distortions)), SAMPLING_STREAM])
    values, nearest = low + (high - low) * drawn[:, :-1], drawn[:, -1, 0] < 0.5
    return DistortionPlan(distortions, values.to(torch.float32), nearest)


def apply_plan(
    images: Tensor, plan: DistortionPlan, *, interpolation: Interpolation = "nearest", out: Tensor | None = None
) -> Tensor:
    """Apply every distortion of a plan to a batch.

    Args:
        images: (n, 3, H, W) float RGB in [0, 1].
        plan: The plan for these n images.
        interpolation: Sampling of the geometric distortions; the paper's code uses "nearest". "mixed" is nearest or
            bilinear for each image, as its plan says.
        out: Tensor for the result, (n, D, 3, H, W).

    Returns:
        The distorted images (n, D, 3, H, W).

    Raises:
        ValueError: The images have another shape or type or are too small for the blur's reflected border, the plan is
            for another number of images, or `out` has another shape.

    Example:
        >>> images = torch.rand(8, 3, 64, 64)
        >>> apply_plan(images, draw_plan(torch.arange(8), seed=0, epoch=0)).shape
        torch.Size([8, 6, 3, 64, 64])
    """
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be (n, 3, H, W) float, not {images.dtype} of shape {tuple(images.shape)}")
    n, _, height, width = images.shape
    smallest = tuple(size // 2 + 1 for size in BLUR_KERNEL)
    if height < smallest[0] or width < smallest[1]:
        raise ValueError(f"images are {height} x {width} pixels; the blur needs at least {smallest[0]} x {smallest[1]}")
    if len(plan.values) != n:
        raise ValueError(f"the plan is for {len(plan.values)} images, not for {n}")
    images = images.contiguous()
    shape = (n, len(plan.distortions), 3, height, width)
    views = images.new_empty(shape) if out is None else out
    if views.shape != shape:
        raise ValueError(f"out must be {shape}, not {tuple(views.shape)}")
    sampling = plan.nearest if interpolation == "mixed" else interpolation
    for d, (name, distortion) in enumerate(plan.distortions.items()):
        views[:, d] = distortion.apply(images, plan[name].to(images.dtype), sampling)
    return views


def to_float(images: Tensor) -> Tensor:
    """Convert images from uint8 (n, H, W, 3) to float (n, 3, H, W) in [0, 1].

    Called after the images were moved to the device, because uint8 is faster to move than float.
    """
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def make_views(images: Tensor, plan: DistortionPlan, interpolation: Interpolation = "nearest") -> Tensor:
    """Return each image and its distorted versions.

    Args:
        images: (n, 3, H, W) float RGB in [0, 1].
        plan: The plan for these n images.
        interpolation: Sampling of the geometric distortions.

    Returns:
        Views (n, 1 + D, 3, H, W), the reference first.

    Raises:
        ValueError: As `apply_plan`.
    """
    views = images.new_empty(len(images), 1 + len(plan.distortions), *images.shape[1:])
    views[:, 0] = images
    apply_plan(images, plan, interpolation=interpolation, out=views[:, 1:])
    return views
