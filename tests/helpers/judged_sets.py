"""Small sets of human judgements for tests, written only with `tarfile`."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from helpers.shard_sets import write_set

SCALAR = {"triplets": "judge", "pairs": "same"}
IMAGES = {"triplets": ("ref", "p0", "p1"), "pairs": ("p0", "p1")}


def write_judged(directory: Path, kind: str, images: np.ndarray, votes: np.ndarray) -> Path:
    """Write uint8 images (n, 3 or 2, H, W, 3) and votes (n,) in the order given, three samples a shard."""
    samples = [
        {
            **{f"{name}.bin": view.tobytes() for name, view in zip(IMAGES[kind], views, strict=True)},
            f"{SCALAR[kind]}.f32": struct.pack("<f", vote),
        }
        for views, vote in zip(images, votes, strict=True)
    ]
    sizes = [min(3, len(samples) - start) for start in range(0, len(samples), 3)]
    return write_set(directory, samples, sizes, kind=kind, image_size=images.shape[2:4])


def noise_set(directory: Path, kind: str, samples: int, *, seed: int = 0, pixels: int = 32) -> Path:
    """Write a set of random images. The images of a sample after the first are the first one with added noise."""
    rng = np.random.default_rng(seed)
    count = len(IMAGES[kind])
    first = rng.random((samples, 1, pixels, pixels, 3))
    amounts = rng.random((samples, count, 1, 1, 1)) * (np.arange(count) > 0).reshape(-1, 1, 1, 1)
    views = first + amounts * (rng.random((samples, count, pixels, pixels, 3)) - 0.5)
    images = (views.clip(0, 1) * 255).astype(np.uint8)
    return write_judged(directory, kind, images, rng.binomial(5, 0.5, samples) / 5)


def real_triplets(imagenet_sample: Path, lpips_example: Path, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the real triplet of BAPPS, then centre crops of ImageNet images with two of their `_versions` each."""
    rng = np.random.default_rng(0)
    example = [Image.open(lpips_example / f"ex_{part}.png").convert("RGB") for part in ("ref", "p0", "p1")]
    triplets = [example]
    for path in sorted(imagenet_sample.rglob("*.JPEG"))[: samples - 1]:
        crop = _centre(Image.open(path).convert("RGB"))
        versions = _versions(crop, rng)
        triplets.append([crop, *(versions[i] for i in rng.choice(len(versions), 2, replace=False))])
    images = np.stack([[np.asarray(image) for image in triplet] for triplet in triplets])
    return images, rng.binomial(5, 0.5, len(images)) / 5


def real_pairs(imagenet_sample: Path, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return crops of ImageNet images, each with a version or itself; equal pairs have tied distances of zero."""
    rng = np.random.default_rng(1)
    pairs = []
    for number, path in enumerate(sorted(imagenet_sample.rglob("*.JPEG"))[-samples:]):
        crop = _centre(Image.open(path).convert("RGB"))
        versions = [crop, *_versions(crop, rng)]
        pairs.append([crop, versions[number % len(versions)]])
    images = np.stack([[np.asarray(image) for image in pair] for pair in pairs])
    return images, rng.binomial(3, 0.5, len(images)) / 3


def _centre(image: Image.Image) -> Image.Image:
    left, top = (image.width - 64) // 2, (image.height - 64) // 2
    return image.crop((left, top, left + 64, top + 64))


def _versions(image: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    """Return an image blurred, with noise, with a colour shift, and with coarser pixels."""
    pixels = np.asarray(image, dtype=float)
    noisy = pixels + rng.normal(0, rng.uniform(5, 40), pixels.shape)
    coloured = pixels * rng.uniform(0.5, 1.2, 3)
    coarse = image.resize((16, 16), Image.Resampling.BOX).resize((64, 64), Image.Resampling.NEAREST)
    return [
        image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3))),
        *(Image.fromarray(changed.clip(0, 255).astype(np.uint8)) for changed in (noisy, coloured)),
        coarse,
    ]
