"""Crops: drawn by counter, resampled as Pillow resizes a box, and in the images that training sees."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastdps.contexts.crops import LEAST_SIDE, crop, draw_crops


def smooth_images(n, height, width):
    noise = torch.rand(n, 3, height // 4 + 1, width // 4 + 1, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=(height, width), mode="bilinear", align_corners=False)


@pytest.mark.parametrize(("height", "width", "size"), [(96, 96, 64), (256, 200, 64), (48, 64, 64)])
def test_a_crop_is_what_pillow_resizes_from_its_box(height, width, size):
    images, plan = smooth_images(8, height, width), draw_crops(torch.arange(8), seed=3, epoch=1)
    crops = crop(images, plan, size)
    assert {True, False} == set(plan.flip.tolist())
    for image, ours, side, top, left, flip in zip(
        images, crops, plan.side, plan.top, plan.left, plan.flip, strict=True
    ):
        pixels = side.item() * min(height, width)
        x, y = left.item() * (width - pixels), top.item() * (height - pixels)
        for channel, own in zip(image, ours, strict=True):
            box = (x, y, x + pixels, y + pixels)
            resized = Image.fromarray(channel.numpy()).resize((size, size), Image.Resampling.BILINEAR, box=box)
            wanted = np.array(resized)[:, ::-1] if flip else np.array(resized)
            assert np.abs(own.numpy() - wanted).max() < 1e-4


def test_a_plan_is_a_pure_function_of_seed_epoch_and_id():
    ids = torch.tensor([5, 2**40, 7])
    plan, alone = draw_crops(ids, seed=1, epoch=2), draw_crops(ids[1:2], seed=1, epoch=2)
    assert torch.equal(plan.side[1:2], alone.side)
    assert torch.equal(plan.left[1:2], alone.left)
    assert not torch.equal(plan.side, draw_crops(ids, seed=1, epoch=3).side)
    assert not torch.equal(plan.side, draw_crops(ids, seed=2, epoch=2).side)


def test_sides_positions_and_flips_are_uniform():
    plan = draw_crops(torch.arange(20_000), seed=0, epoch=0)
    quantiles = torch.linspace(0.1, 0.9, 9)
    for values, low in ((plan.side, LEAST_SIDE), (plan.top, 0.0), (plan.left, 0.0)):
        assert values.min() >= low
        assert values.max() <= 1
        assert (values.quantile(quantiles) - (low + (1 - low) * quantiles)).abs().max() < 0.02
    assert 0.48 < plan.flip.float().mean() < 0.52
    assert abs(torch.corrcoef(torch.stack([plan.side, plan.top, plan.left])).triu(1)).max() < 0.03


def test_a_crop_does_not_depend_on_its_batch():
    images, plan = smooth_images(6, 96, 96), draw_crops(torch.arange(6), seed=0, epoch=0)
    alone = crop(images[3:4], draw_crops(torch.tensor([3]), seed=0, epoch=0), 64)
    assert torch.equal(crop(images, plan, 64)[3:4], alone)


def test_wrong_images_are_refused():
    plan = draw_crops(torch.arange(2), seed=0, epoch=0)
    with pytest.raises(ValueError, match="float"):
        crop(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), plan, 8)
    with pytest.raises(ValueError, match="2 images, not for 3"):
        crop(torch.zeros(3, 3, 8, 8), plan, 8)
