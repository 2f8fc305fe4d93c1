"""Each distortion against torchvision's, and the plan as a pure function of seed, epoch and sample id."""

import math

import kornia
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from torchvision.transforms import InterpolationMode

from fastdps.contexts.distortions import (
    DISTORTIONS,
    NAMES,
    Distortion,
    DistortionPlan,
    Parameter,
    apply_plan,
    draw_plan,
    make_views,
    to_float,
)
from fastdps.contexts.philox import uniforms

SIZES = [(64, 64), (48, 80)]


def smooth_images(n: int, height: int, width: int) -> torch.Tensor:
    """Images with structure at several scales, so that neighbours differ and borders matter."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(n, 3, 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (images + 0.1 * torch.rand(images.shape, generator=generator)).clamp(0, 1)


def torchvision_version(name: str, image: torch.Tensor, parameters: list[float], mode: InterpolationMode):
    height, width = image.shape[-2:]
    first = parameters[0]
    if name == "rotate":
        return tv.rotate(image, first, interpolation=mode)
    if name == "translate":
        shift = [round(first * width), round(parameters[1] * height)]
        return tv.affine(image, 0.0, shift, 1.0, [0.0, 0.0], interpolation=mode)
    if name == "zoom_in":
        return tv.affine(image, 0.0, [0, 0], first, [0.0, 0.0], interpolation=mode)
    if name == "darken":
        return tv.adjust_brightness(image, first)
    if name == "color":
        return tv.adjust_hue(image, first)
    return tv.gaussian_blur(image, [11, 21], [first, first])


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_torchvision(name, height, width):
    images = smooth_images(40, height, width)
    plan = draw_plan(torch.arange(40), seed=11, epoch=0)
    ours = apply_plan(images, plan)[:, NAMES.index(name)]
    theirs = torch.stack(
        [
            torchvision_version(name, image, parameters, InterpolationMode.NEAREST)
            for image, parameters in zip(images, plan[name].tolist(), strict=True)
        ]
    )
    difference = (ours - theirs).abs()
    if name in ("darken", "color", "blur"):
        assert difference.max() < 1e-4
    else:
        agreeing = (difference.amax(dim=1) < 1e-4).float().mean(dim=(1, 2))
        assert agreeing.min() >= 0.98


@pytest.mark.parametrize("name", ["rotate", "translate", "zoom_in"])
def test_bilinear_agrees_with_torchvision_inside(name):
    images = smooth_images(20, 64, 64)
    plan = draw_plan(torch.arange(20), seed=12, epoch=0)
    ours = apply_plan(images, plan, interpolation="bilinear")[:, NAMES.index(name)]
    theirs = torch.stack(
        [
            torchvision_version(name, image, parameters, InterpolationMode.BILINEAR)
            for image, parameters in zip(images, plan[name].tolist(), strict=True)
        ]
    )
    # At the border of the rotated image torchvision blends its mask with the fill value; elsewhere they agree.
    agreeing = ((ours - theirs).abs().amax(dim=1) < 1e-3).float().mean(dim=(1, 2))
    assert agreeing.min() >= 0.95


def test_nearest_only_moves_pixels():
    images = smooth_images(4, 64, 64)
    views = apply_plan(images, draw_plan(torch.arange(4), seed=3, epoch=0))
    for name in ("rotate", "translate", "zoom_in"):
        for image, view in zip(images, views[:, NAMES.index(name)], strict=True):
            assert set(view.unique().tolist()) <= {0.0, *image.unique().tolist()}


def test_plan_does_not_depend_on_the_batch():
    ids = torch.tensor([5, 900, 17, 2**40, 3])
    whole = draw_plan(ids, seed=1, epoch=2).values
    alone = torch.cat([draw_plan(ids[i : i + 1], seed=1, epoch=2).values for i in range(len(ids))])
    assert torch.equal(whole, alone)
    assert torch.equal(whole.flip(0), draw_plan(ids.flip(0), seed=1, epoch=2).values)


def test_plan_does_not_use_the_global_generator():
    state = torch.get_rng_state()
    plan = draw_plan(torch.arange(3), seed=1, epoch=2)
    apply_plan(smooth_images(3, 64, 64), plan)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 3}])
def test_plan_depends_on_seed_and_epoch(change):
    base = {"seed": 1, "epoch": 2}
    ids = torch.arange(100)
    used = torch.stack([draw_plan(ids, **base)[n][:, 0] - draw_plan(ids, **{**base, **change})[n][:, 0] for n in NAMES])
    assert (used != 0).float().mean() > 0.99


def test_parameters_fill_their_ranges():
    plan = draw_plan(torch.arange(5000), seed=1, epoch=0)
    for name, distortion in DISTORTIONS.items():
        for p, parameter in enumerate(distortion.parameters):
            drawn = plan[name][:, p]
            width = parameter.high - parameter.low
            assert parameter.low <= drawn.min() < parameter.low + 0.01 * width
            assert parameter.high - 0.01 * width < drawn.max() <= parameter.high
            assert abs(drawn.mean() - (parameter.low + parameter.high) / 2) < 0.02 * width


def test_adding_a_distortion_leaves_the_others_alone():
    more = {**DISTORTIONS, "invert": DISTORTIONS["darken"]}
    ids = torch.arange(10)
    before, after = draw_plan(ids, seed=1, epoch=0), draw_plan(ids, seed=1, epoch=0, distortions=more)
    assert all(torch.equal(before[name], after[name]) for name in NAMES)


@pytest.fixture
def threads():
    """Set the number of threads, and restore it afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "mixed"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_an_image_does_not_depend_on_its_batch(threads, height, width, interpolation):
    """The result is bitwise equal in batches of 1, 7 and 64, on one thread or two."""
    images = smooth_images(64, height, width)
    plan = draw_plan(torch.arange(64), seed=1, epoch=0)
    versions = []
    for count in (1, 2):
        threads(count)
        for batch in (1, 7, 64):
            parts = zip(images.split(batch), plan.values.split(batch), plan.nearest.split(batch), strict=True)
            views = [
                apply_plan(part, DistortionPlan(DISTORTIONS, values, nearest), interpolation=interpolation)
                for part, values, nearest in parts
            ]
            versions.append(torch.cat(views))
    assert all(torch.equal(version, versions[0]) for version in versions[1:])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_mixed_is_nearest_or_bilinear_for_each_image_as_its_plan_says(height, width):
    images = smooth_images(64, height, width)
    plan = draw_plan(torch.arange(64), seed=1, epoch=0)
    assert 20 < plan.nearest.sum() < 44
    mixed, nearest, bilinear = (apply_plan(images, plan, interpolation=i) for i in ("mixed", "nearest", "bilinear"))
    wanted = torch.where(plan.nearest[:, None, None, None, None], nearest, bilinear)
    assert ((mixed - wanted).abs() < 1e-4).float().mean() > 0.995  # positions between two pixels may round either way
    assert ((mixed - wanted)[~plan.nearest].abs() < 1e-4).all()


def test_color_of_greys_primaries_and_mixtures():
    """Every corner, edge and grey of the colour cube, for shifts all around the circle."""
    level = torch.linspace(0, 1, 9)
    cube = torch.cartesian_prod(level, level, level).T.reshape(1, 3, 27, 27)
    shifts = torch.linspace(-0.5, 0.5, 41)
    turned = DISTORTIONS["color"].apply(cube.expand(41, -1, -1, -1), shifts[:, None], "nearest")
    for shift, ours in zip(shifts.tolist(), turned, strict=True):
        assert (ours - tv.adjust_hue(cube[0], shift)).abs().max() < 1e-5
    assert (turned - kornia.enhance.adjust_hue(cube.expand_as(turned), shifts * 2 * math.pi)).abs().max() < 1e-5
    greys = (cube.amax(1) == cube.amin(1))[0]
    assert greys.sum() == len(level)
    assert (turned[..., greys] == cube.expand_as(turned)[..., greys]).all()


@pytest.mark.parametrize(("height", "width"), [(11, 6), (21, 100), (130, 12)])
def test_blur_of_other_sizes(height, width):
    images = smooth_images(5, height, width)
    sigma = torch.linspace(0.5, 10, 5)
    ours = DISTORTIONS["blur"].apply(images, sigma[:, None], "nearest")
    for image, s, blurred in zip(images, sigma.tolist(), ours, strict=True):
        assert (blurred - tv.gaussian_blur(image, [11, 21], [s, s])).abs().max() < 1e-5
    theirs = kornia.filters.gaussian_blur2d(images, (21, 11), sigma[:, None].expand(-1, 2))
    assert (ours - theirs).abs().max() < 1e-5


def test_views_are_written_where_they_are_wanted():
    images, plan = smooth_images(3, 64, 64), draw_plan(torch.arange(3), seed=1, epoch=0)
    out = torch.full((3, 7, 3, 64, 64), -1.0)
    apply_plan(images, plan, out=out[:, 1:])
    assert torch.equal(out[:, 1:], apply_plan(images, plan))
    assert (out[:, 0] == -1).all()
    with pytest.raises(ValueError, match="out must be"):
        apply_plan(images, plan, out=out)


def test_an_empty_batch_is_no_special_case():
    plan = draw_plan(torch.arange(0), seed=1, epoch=0)
    assert apply_plan(torch.zeros(0, 3, 64, 64), plan).shape == (0, 6, 3, 64, 64)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "float"),
        (torch.zeros(2, 64, 64, 3), "n, 3, H, W"),
        (torch.zeros(2, 3, 8, 64), "at least 11 x 6"),
        (torch.zeros(3, 3, 64, 64), "the plan is for 2"),
    ],
)
def test_wrong_images_are_rejected(images, message):
    with pytest.raises(ValueError, match=message):
        apply_plan(images, draw_plan(torch.arange(2), seed=1, epoch=0))


def test_the_parameters_are_those_of_the_paper():
    """Names, ranges and order: `details.json` names them, and all drawn numbers depend on them."""
    found = {name: [(p.name, p.low, p.high) for p in one.parameters] for name, one in DISTORTIONS.items()}
    assert list(found.items()) == [
        ("rotate", [("angle", 30, 330)]),
        ("translate", [("dx", -0.5, 0.5), ("dy", -0.5, 0.5)]),
        ("darken", [("factor", 0.1, 0.5)]),
        ("color", [("hue_shift", -0.5, 0.5)]),
        ("blur", [("sigma", 4, 10)]),
        ("zoom_in", [("scale", 1.1, 2)]),
    ]


def test_the_plan_is_the_uniform_numbers_scaled_in_double_precision():
    ids = torch.tensor([0, 7, 2**40])
    plan, drawn = draw_plan(ids, seed=5, epoch=2), uniforms(5, 2, ids, streams=6)
    for d, (name, distortion) in enumerate(DISTORTIONS.items()):
        for p, parameter in enumerate(distortion.parameters):
            numbers = [parameter.low + (parameter.high - parameter.low) * u for u in drawn[:, d, p].tolist()]
            assert torch.equal(plan[name][:, p], torch.tensor(numbers, dtype=torch.float64).float())


@pytest.mark.parametrize("count", [0, 5])
def test_a_distortion_has_one_to_four_parameters(count):
    with pytest.raises(ValueError, match=f"1 to 4 parameters, not {count}"):
        Distortion((Parameter("x", 0, 1, ""),) * count, lambda images, *_: images)
    Distortion((Parameter("x", 0, 1, ""),) * 4, lambda images, *_: images)


def test_the_smallest_images_are_accepted():
    plan = draw_plan(torch.arange(2), seed=1, epoch=0)
    assert apply_plan(torch.rand(2, 3, 11, 6), plan).shape == (2, 6, 3, 11, 6)
    for height, width in ((10, 6), (11, 5)):
        with pytest.raises(ValueError, match="at least 11 x 6"):
            apply_plan(torch.rand(2, 3, height, width), plan)


def test_bytes_become_floats_as_in_torchvision():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    images[0, 0, 0] = 255
    found = to_float(torch.from_numpy(images))
    assert torch.equal(found, torch.stack([tv.to_tensor(image) for image in images]))
    assert found.is_contiguous()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_views_are_the_image_and_its_distorted_versions(interpolation):
    images, plan = smooth_images(3, 32, 48), draw_plan(torch.arange(3), seed=1, epoch=0)
    views = make_views(images, plan, interpolation)
    assert views.shape == (3, 7, 3, 32, 48)
    assert torch.equal(views[:, 0], images)
    assert torch.equal(views[:, 1:], apply_plan(images, plan, interpolation=interpolation))
