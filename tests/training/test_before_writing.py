"""Mistakes are found before anything is written: the same command, corrected, then starts a run."""

from pathlib import Path

import pytest
from PIL import Image

import fastdps
from fastdps.commands import cli
from fastdps.errors import ConfigError, FastDPSError, WeightsNotFoundError
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves

RANKING = "color,darken,zoom_in,rotate,translate,blur"


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def leaves(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("leaves")
    pack(DeadLeaves(10, 32, seed=1), out, PackOptions(size=32, holdout=0.2), workers=1)
    return out


@pytest.fixture(scope="module")
def trained(leaves, weights_dir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        fastdps.train(leaves / "train", out, contexts=RANKING, epochs=1)
    return out


def contents(directory: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "alexnett"], "Did you mean alexnet?"),
        (["--taps", "1,99"], "alexnet has no tap 99"),
        (["--size", "16"], "too small for alexnet, which needs at least 31 x 31. Give --size 31"),
        (["--shards", "{}/vall"], "vall is not a shard set"),
        (["--validation", "{}/vall"], "vall is not a shard set"),
        (["--validation", "{}/triplets/train"], "is a set of triplets; what is asked for needs images"),
        (["--backbone", "resnet18"], "Put resnet18_features.safetensors"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_leaves_no_run(leaves, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr("fastdps.metric.torchvision_backbones.load_pretrained", not_found)
    if "triplets" in options[-1]:
        triplets(tmp_path, leaves)
    options = [option.format(tmp_path if "triplets" in option else leaves) for option in options]
    shards = [] if "--shards" in options else ["--shards", str(leaves / "train")]
    argv = ["train", *shards, "--out", str(tmp_path / "runs/run"), "--contexts", RANKING]
    assert cli.main([*argv, *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs/run").exists()


def not_found(name: str, _: object) -> None:
    raise WeightsNotFoundError(f"Put {name}_features.safetensors")


def triplets(directory: Path, leaves: Path) -> None:
    for name in ("ref", "p0", "p1"):
        Image.new("RGB", (32, 32), {"ref": "red", "p0": "teal", "p1": "navy"}[name]).save(directory / f"{name}.png")
    (directory / "few.csv").write_text("ref,p0,p1,judge\nref.png,p0.png,p1.png,1\n")
    pack(fastdps.open_source("triplets", directory / "few.csv"), directory / "triplets", PackOptions(size=32))


def test_a_failed_overwriting_keeps_the_run(leaves, trained, monkeypatch):
    (trained / "notes.txt").write_text("mine")
    before = contents(trained)
    argv = ["train", "--shards", str(leaves / "train"), "--contexts", RANKING, "--out", str(trained), "--overwrite"]
    assert cli.main([*argv, "--size", "8"]) == 1
    with monkeypatch.context() as patch:
        patch.setattr("fastdps.metric.torchvision_backbones.load_pretrained", not_found)
        assert cli.main([*argv, "--backbone", "vgg11"]) == 1
    assert contents(trained) == before
    assert cli.main([*argv, "--epochs", "2", "--quiet"]) == 0
    assert contents(trained) != before
    assert (trained / "notes.txt").read_text() == "mine"


def test_images_that_are_too_small_to_score(leaves, trained):
    before = contents(trained)
    options = fastdps.EvaluationOptions(size=30)
    with pytest.raises(ConfigError, match=rf"{leaves}/val: images of 30 x 30 .* at least 31 x 31"):
        fastdps.evaluate(trained, shards=leaves / "val", options=options)
    assert contents(trained) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_other_files_is_no_place_for_a_run(leaves, tmp_path, overwrite):
    (tmp_path / "photos/examples").mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / f"photos/{number}.png")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"not a run and holds other files: 0.png, 1.png, 2.png and 2 more. Choose"):
        fastdps.train(leaves / "train", tmp_path / "photos", contexts=RANKING, epochs=1, overwrite=overwrite)
    with pytest.raises(ConfigError, match=r"holds other files: manifest.json"):
        fastdps.train(leaves / "train", leaves / "train", contexts=RANKING, epochs=1, overwrite=overwrite)
    with pytest.raises(FastDPSError, match=r"0.png cannot be a run directory: Not a directory"):
        fastdps.train(leaves / "train", tmp_path / "photos/0.png", contexts=RANKING, epochs=1)
    assert contents(tmp_path) == before
