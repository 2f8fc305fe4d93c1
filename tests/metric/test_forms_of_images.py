"""The metric takes images as users have them, and gives vectors that other libraries find the same neighbours with."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torchvision.transforms.v2.functional import pil_to_tensor, resize

import fastdps
from fastdps.errors import ImageError, SampleError
from fastdps.metric.backbones import Backbone
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.origin import Origin
from fastdps.metric.perceptual import PerceptualMetric


def make_metric(size: tuple[int, int] | None = (40, 48), comparison: str = "spatial") -> ImageMetric:
    weights = torch.rand(1, 1152 * (2 if "+" in comparison else 1), generator=torch.Generator().manual_seed(0))
    metric = PerceptualMetric(Backbone("alexnet", pretrained=False), weights, comparison=comparison)
    metric.origin = Origin(size, "ab" * 32, "1.2.3")
    return ImageMetric(metric)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Photographs of several sizes, as files."""
    out, dice = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for number, (width, height) in enumerate([(60, 50), (48, 40), (90, 120), (64, 64), (60, 50)]):
        small = dice.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((width, height)).save(out / f"{number}.png")
    return sorted(out.iterdir())


def test_all_forms_of_an_image_are_the_same_image(files):
    m = make_metric()
    forms = [
        files,
        list(map(str, files)),
        [Image.open(file) for file in files],
        [np.array(Image.open(file)) for file in files],
        [np.array(Image.open(file)) / np.float32(255) for file in files],
        [files[0], Image.open(files[1]), np.array(Image.open(files[2])), *files[3:]],
    ]
    expected = m.matrix(
        torch.stack([resize(pil_to_tensor(Image.open(file)), [40, 48], antialias=True) for file in files])
    )
    for form in forms:
        torch.testing.assert_close(m.matrix(form), expected, atol=2e-3, rtol=0.02)
    assert m(files[0], files[0]).tolist() == [0]
    assert m(files[0], files[1:]).shape == (4,)
    found = m.rank(files[0], files, top=2)
    assert found.indices.tolist() == expected[0].argsort(stable=True)[:2].tolist()
    torch.testing.assert_close(m.matrix(files[:2], files[2:]), expected[:2, 2:], atol=2e-3, rtol=0.02)


@pytest.mark.parametrize("comparison", ["spatial", "sort", "spatial+mean"])
def test_other_libraries_find_the_same_neighbours(comparison):
    m = make_metric(comparison=comparison)
    images = torch.rand(20, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    vectors = m.embed(images).numpy()
    found = NearestNeighbors(n_neighbors=4).fit(vectors[5:])
    lengths, indices = found.kneighbors(vectors[:5])
    matrix = m.matrix(images[:5], images[5:])
    np.testing.assert_allclose(lengths**2, np.sort(matrix, axis=1)[:, :4], rtol=1e-4)
    assert (indices == matrix.argsort(dim=1)[:, :4].numpy()).all()
    torch.testing.assert_close(matrix, m.matrix(images)[:5, 5:], rtol=1e-4, atol=1e-6)
    small = m.matrix(images[:5], images[5:], memory_MiB=0.3)  # in blocks
    torch.testing.assert_close(small, matrix, rtol=1e-4, atol=1e-6)


def test_read_images(files, tmp_path):
    assert fastdps.read_images(files, 32).shape == (5, 3, 32, 32)
    assert fastdps.read_images(files, (20, 30)).shape == (5, 3, 20, 30)
    assert fastdps.read_images(files[0]).dtype == torch.uint8
    assert torch.equal(fastdps.read_images(files[0])[0], pil_to_tensor(Image.open(files[0])))
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert torch.equal(fastdps.read_images(grey)[0, 1], torch.tensor(grey))
    assert fastdps.read_images(np.zeros((4, 8, 8, 3), np.uint8)).shape == (4, 3, 8, 8)
    for images, message in (
        (files[:3], "image 1 has 40 x 48 pixels and image 0 has 50 x 60"),
        ([], "the list is empty"),
        (np.zeros((8, 8, 4), np.uint8), r"an array has shape \(8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.int64), "an array has type int64"),
        (Image.new("I;16", (8, 8)), "more than 8 bits"),
        (3, "builtins.int is not an image"),
    ):
        with pytest.raises(ImageError, match=message):
            fastdps.read_images(images)
    (tmp_path / "bad.png").write_bytes(b"x")
    for path, message in ((tmp_path / "bad.png", "bad.png does not decode"), (tmp_path / "no.png", "does not exist")):
        with pytest.raises(SampleError, match=message):
            fastdps.read_images(path)
    with pytest.raises(SampleError, match="is a folder"):
        make_metric()(tmp_path, files[0])


def test_the_size_is_kept_in_the_file(tmp_path):
    m = make_metric()
    m.metric.save(tmp_path / "m.safetensors", include_backbone=True)
    loaded = fastdps.load(tmp_path / "m.safetensors")
    assert loaded.size == (40, 48)
    assert loaded.metric.origin == m.metric.origin
    shown = loaded._repr_html_()
    assert "40 x 48 pixels" in shown
    assert "fastdps 1.2.3" in shown
    assert make_metric(None).size is None
    with pytest.raises(ImageError, match="x: image 1 has"):
        make_metric(None)([np.zeros((40, 40, 3), np.uint8), np.zeros((50, 40, 3), np.uint8)], torch.rand(3, 40, 40))


def test_the_public_names_are_all_that_dir_shows():
    assert dir(fastdps) == sorted([*fastdps.__all__, "__version__"])
