"""ONNX metrics without torch: the distances of `fastdps.load`, and the resizing of torchvision."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

import fastdps
from fastdps.contexts.distortions import NAMES
from fastdps.errors import ConfigError, FastDPSError, ImageError, SampleError
from fastdps.metric.arrays import resize_array
from fastdps.metric.backbones import Backbone
from fastdps.metric.origin import Origin
from fastdps.metric.perceptual import PerceptualMetric

#: Two taps, which are written faster than five.
TAPS = (1, 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory, weights_dir):
    """A metric that was adapted at 48 x 40 pixels, and its export as ONNX."""
    folder = tmp_path_factory.mktemp("onnx")
    weights = torch.rand(1, 256, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        metric = PerceptualMetric(Backbone("alexnet", taps=TAPS), weights, [NAMES])
        metric.origin = Origin((48, 40), "ab" * 32, "0.1.0")
        metric.save(folder / "metric.safetensors")
        fastdps.export(folder / "metric.safetensors", folder / "metric.onnx", "onnx")
        yield fastdps.load(folder / "metric.safetensors"), folder / "metric.onnx"


@pytest.fixture(scope="module")
def photographs(imagenet_sample, tmp_path_factory):
    """Paths of photographs of several sizes, one of them a PNG with transparency."""
    paths = sorted(imagenet_sample.rglob("*.JPEG"))[:18]
    clear = tmp_path_factory.mktemp("png") / "clear.png"
    Image.open(paths[0]).convert("RGBA").resize((70, 90)).save(clear)
    return [*paths, clear]


@torch.no_grad()
def test_distances_are_those_of_torch(files, photographs):
    metric, path = files
    theirs = fastdps.load_onnx(path)
    assert theirs.size == metric.size == (48, 40)
    assert theirs.context == metric.context
    assert theirs.judge is None
    arrays = [np.array(Image.open(photo).convert("RGB")) for photo in photographs[:4]]
    pictures = [Image.open(photo) for photo in photographs[4:8]]
    floats = [(array / 255).astype(np.float32) for array in arrays]
    grey = np.stack([array[:60, :50, 0] for array in arrays])[..., None].repeat(3, axis=3)
    for x, y in (
        (photographs[0], photographs[1:]),
        (photographs[1:], str(photographs[0])),
        (arrays, pictures),
        (floats, arrays[::-1]),
        (grey, floats),
        ([arrays[0], pictures[0], photographs[0], arrays[1][..., 0]], grey[0]),
    ):
        assert np.allclose(theirs(x, y), metric(x, y), atol=1e-5, rtol=0)
    assert theirs(photographs[0], photographs[1:]).dtype == np.float32
    ours, ranked = (one.rank(photographs[0], photographs, top=5) for one in (metric, theirs))
    assert ranked.indices.tolist() == ours.indices.tolist()
    assert np.allclose(ranked.distances, ours.distances, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (30, 200), (224, 150), (375, 500), (3, 1000), (1, 1)])
def test_resizing_is_that_of_torchvision(size):
    pixels = np.random.default_rng(0).integers(0, 256, (375, 251, 3), dtype=np.uint8)
    for image in (pixels, pixels.transpose(1, 0, 2), (pixels / 255).astype(np.float32)):
        tensor = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0)
        expected = resize(tensor, list(size), antialias=True).movedim(0, -1).numpy()
        found = resize_array(image, size)
        assert found.dtype == image.dtype
        assert np.array_equal(found, expected) if image.dtype == np.uint8 else np.allclose(found, expected, atol=1e-5)


def test_nothing_but_numpy_and_onnxruntime_is_imported(files, photographs):
    """Arrays need neither torch nor Pillow; files need Pillow and simplejpeg."""
    metric, path = files
    absent = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'scipy', 'pyarrow'{}]));"
    use = "import fastdps, numpy; m = fastdps.load_onnx(sys.argv[1]); x, y = {};print(*m(x, y))"
    x = np.arange(4 * 48 * 40 * 3, dtype=np.uint8).reshape(4, 48, 40, 3)
    made = "numpy.arange(23040, dtype=numpy.uint8).reshape(4, 48, 40, 3)[::2], numpy.zeros((48, 40, 3), numpy.uint8)"
    cases = [
        (absent.format(", 'PIL', 'simplejpeg'") + use.format(made), [], metric(x[::2], np.zeros_like(x[0]))),
        (absent.format("") + use.format("sys.argv[2:]"), photographs[:2], metric(*photographs[:2])),
    ]
    for code, names, expected in cases:
        command = [sys.executable, "-c", code, str(path), *map(str, names)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        assert np.allclose([float(part) for part in done.stdout.split()], expected, atol=1e-5)


def test_wrong_images_are_named(files, tmp_path):
    metric = fastdps.load_onnx(files[1])
    good = np.zeros((48, 40, 3), np.uint8)
    for images, message in (
        ([], "y: there are no images"),
        (None, "y: builtins.NoneType is not an image"),
        (torch.zeros(3, 48, 40), r"y: torch\.Tensor is not an image"),
        (good.transpose(2, 0, 1), "The channels are first"),
        (good.astype(np.int64), "type int64"),
        (np.full((48, 40, 3), 128.0), r"values are from 128 to 128"),
        (np.full((48, 40, 3), np.nan), r"values are from nan"),
    ):
        with pytest.raises(ImageError, match=message):
            metric(good, images)
    with pytest.raises(ImageError, match="x has 2 images and y has 3"):
        metric([good] * 2, [good] * 3)
    with pytest.raises(ImageError, match="ref must be one image, not 2"):
        metric.rank([good] * 2, good)
    with pytest.raises(SampleError, match="does not exist"):
        metric(good, tmp_path / "nowhere.png")


def changed(path, out, change):
    """Write an ONNX file with another card, which `change` returns."""
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, change(json.loads(metadata["fastdps"])))
    onnx.save(model, out)
    return out


def test_a_metric_without_a_size_keeps_that_of_the_images(files, tmp_path):
    """As files of 0.1.0, whose cards do not have it."""

    def without(card):
        del card["metric"]["image_size"], card["judge"]
        return {"fastdps": json.dumps(card)}

    metric = fastdps.load_onnx(changed(files[1], tmp_path / "old.onnx", without))
    x = np.random.default_rng(0).random((2, 52, 60, 3))
    unsized = fastdps.ImageMetric(PerceptualMetric(files[0].metric.backbone, files[0].metric.weights))
    assert metric.size is None
    assert np.allclose(metric(x[0], x[1]), unsized(x[0], x[1]), atol=1e-5)
    with pytest.raises(ImageError, match="must have the same size"):
        metric(x[0], x[1, :50])
    with pytest.raises(ImageError, match=r"image 1 has 50 x 60 .* all must have one size"):
        metric(x[0], [x[1], x[1, :50]])
    with pytest.raises(ImageError, match=r"at least \d+ x \d+ pixels"):
        metric(x[0, :5, :5], x[1, :5, :5])


def test_foreign_and_damaged_files_are_named(files, tmp_path, monkeypatch):
    def large(card):
        card["metric"]["image_size"] = [48, 1 << 30]
        return {"fastdps": json.dumps(card)}

    for name, change, message in (
        ("foreign", lambda card: {}, "is not a metric of fastdps"),
        ("text", lambda card: {"fastdps": "{"}, "its card cannot be read"),
        ("empty", lambda card: {"fastdps": "{}"}, "context is missing"),
        ("large", large, r"metric\.image_size is"),
    ):
        path = changed(files[1], tmp_path / f"{name}.onnx", change)
        with pytest.raises(FastDPSError, match=rf"{name}\.onnx .*{message}"):
            fastdps.load_onnx(path)
    (tmp_path / "cut.onnx").write_bytes(files[1].read_bytes()[:1000])
    with pytest.raises(FastDPSError, match=r"cut\.onnx cannot be read as an ONNX model"):
        fastdps.load_onnx(tmp_path / "cut.onnx")
    with pytest.raises(FastDPSError, match="does not exist"):
        fastdps.load_onnx(tmp_path / "nowhere.onnx")
    with pytest.raises(ConfigError, match=r"has no NoExecutionProvider; it has .*CPUExecutionProvider"):
        fastdps.load_onnx(files[1], providers=["NoExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="pip install onnxruntime"):
        fastdps.load_onnx(files[1])
    assert onnxruntime.__version__
