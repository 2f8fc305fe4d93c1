"""The six distortions: draw a plan of parameters, then apply it to a batch on its device.

    ids ----------- draw_plan --> Plan (n, D, 4)      a pure function of (seed, epoch, sample id)
    images, Plan -- apply_plan -> (n, D, 3, H, W)     Kornia's functional operations, no loop over images

Parameters are those of Pihlgren et al. 2023 (their code). A distortion is one entry of `DISTORTIONS`; its position
there is its place in every axis of length D.

Shapes: n images, D distortions, P parameters of one distortion, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from kornia.enhance import adjust_brightness_accumulative, adjust_hue
from kornia.filters import gaussian_blur2d
from kornia.geometry.transform import get_rotation_matrix2d, translate, warp_affine
from torch import Tensor

from fastdps.philox import uniforms

Interpolation = Literal["nearest", "bilinear"]

#: Height and width of the Gaussian kernel, in pixels (the paper's code names them the other way round).
BLUR_KERNEL = (21, 11)
#: A counter gives four numbers, so a distortion has at most four parameters.
MAX_PARAMETERS = 4


@dataclass(frozen=True)
class Parameter:
    """One number that is drawn for each image: uniform in [low, high), in `unit`."""

    name: str
    low: float
    high: float
    unit: str


@dataclass(frozen=True)
class Distortion:
    """One kind of distortion: what is drawn, and how it is applied.

    `apply` maps images (n, 3, H, W) and parameters (n, P) to distorted images of the same shape; the geometric ones
    sample with the given interpolation.
    """

    parameters: tuple[Parameter, ...]
    apply: Callable[[Tensor, Tensor, Interpolation], Tensor]

    def __post_init__(self) -> None:
        if not 1 <= len(self.parameters) <= MAX_PARAMETERS:
            raise ValueError(f"a distortion has 1 to {MAX_PARAMETERS} parameters, not {len(self.parameters)}")


def _warp_about_centre(images: Tensor, angle: Tensor, scale: Tensor, interpolation: Interpolation) -> Tensor:
    height, width = images.shape[-2:]
    centre = angle.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(len(angle), 2)
    matrix = get_rotation_matrix2d(centre, angle, scale[:, None].expand(-1, 2))
    return warp_affine(images, matrix, (height, width), mode=interpolation)


def _rotate(images: Tensor, parameters: Tensor, interpolation: Interpolation) -> Tensor:
    angle = parameters[:, 0]
    return _warp_about_centre(images, angle, torch.ones_like(angle), interpolation)


def _translate(images: Tensor, parameters: Tensor, interpolation: Interpolation) -> Tensor:
    height, width = images.shape[-2:]
    shift = (parameters * parameters.new_tensor([width, height])).round()
    return translate(images, shift, mode=interpolation)


def _darken(images: Tensor, parameters: Tensor, _: Interpolation) -> Tensor:
    return adjust_brightness_accumulative(images, parameters[:, 0])


def _color(images: Tensor, parameters: Tensor, _: Interpolation) -> Tensor:
    return adjust_hue(images, parameters[:, 0] * (2 * math.pi))


def _blur(images: Tensor, parameters: Tensor, _: Interpolation) -> Tensor:
    return gaussian_blur2d(images, BLUR_KERNEL, parameters[:, :1].expand(-1, 2), border_type="reflect")


def _zoom_in(images: Tensor, parameters: Tensor, interpolation: Interpolation) -> Tensor:
    scale = parameters[:, 0]
    return _warp_about_centre(images, torch.zeros_like(scale), scale, interpolation)


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
class Plan:
    """The parameters of every distortion for every image of a batch.

    values: (n, D, 4) float32; distortion d uses the first P of the four, in the order of its `parameters`.
    """

    distortions: Mapping[str, Distortion]
    values: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """The parameters (n, P) of one distortion."""
        return self.values[:, list(self.distortions).index(name), : len(self.distortions[name].parameters)]

    def to(self, device: torch.device | str) -> Plan:
        """The same plan on another device."""
        return Plan(self.distortions, self.values.to(device, non_blocking=True))


def draw_plan(ids: Tensor, *, seed: int, epoch: int, distortions: Mapping[str, Distortion] = DISTORTIONS) -> Plan:
    """Draw the parameters of all distortions for the samples `ids` (n,), int64.

    A sample's parameters depend on (seed, epoch, its id) alone, and those of one distortion do not change when others
    are added behind it. The plan is on the device of `ids`; the numbers are the same on all devices.
    """
    low, high = torch.zeros(2, len(distortions), MAX_PARAMETERS, dtype=torch.float64)
    for d, distortion in enumerate(distortions.values()):
        for p, parameter in enumerate(distortion.parameters):
            low[d, p], high[d, p] = parameter.low, parameter.high
    low, high = low.to(ids.device), high.to(ids.device)
    drawn = uniforms(seed, epoch, ids, streams=len(distortions))
    return Plan(distortions, (low + (high - low) * drawn).to(torch.float32))


def apply_plan(images: Tensor, plan: Plan, *, interpolation: Interpolation = "nearest") -> Tensor:
    """Distort a batch in every way: (n, 3, H, W) float RGB in [0, 1] to (n, D, 3, H, W).

    `interpolation` is that of the geometric distortions; the paper's code uses nearest. Raises `ValueError` for
    images of another shape or type, or too small for the blur's reflected border.
    """
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be (n, 3, H, W) float, not {images.dtype} of shape {tuple(images.shape)}")
    n, _, height, width = images.shape
    smallest = tuple(size // 2 + 1 for size in BLUR_KERNEL)
    if height < smallest[0] or width < smallest[1]:
        raise ValueError(f"images are {height} x {width} pixels; the blur needs at least {smallest[0]} x {smallest[1]}")
    if len(plan.values) != n:
        raise ValueError(f"the plan is for {len(plan.values)} images, and there are {n}")
    images = images.contiguous()
    views = images.new_empty(n, len(plan.distortions), 3, height, width)
    for d, (name, distortion) in enumerate(plan.distortions.items()):
        views[:, d] = distortion.apply(images, plan[name].to(images.dtype), interpolation)
    return views
