"""`fastdps score`: rankings of files and folders, what it refuses, and the picture of where two images differ."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastdps
from fastdps.commands.cli import main
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.report.pictures import overlay


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture
def folder(tmp_path):
    """Noisier and noisier copies of an image, in a folder with another kind of file."""
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 200, (9, 9, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    (tmp_path / "others" / "deep").mkdir(parents=True)
    Image.fromarray(reference).save(tmp_path / "ref.png")
    for name, noise in (("b.png", 50), ("deep/a.png", 5), ("c.png", 20)):
        image = np.clip(reference + rng.normal(0, noise, reference.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "others" / name)
    (tmp_path / "others" / "notes.txt").write_text("no image")
    return tmp_path


def score(capsys, *argv) -> dict:
    assert main(["score", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def pixels(path) -> torch.Tensor:
    return torch.tensor(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)


def test_the_nearest_come_first(folder, capsys):
    found = score(capsys, folder / "ref.png", folder / "others", "--metric", "alexnet")
    names = [str(folder / "others" / name) for name in ("deep/a.png", "c.png", "b.png")]
    assert [row["path"] for row in found["images"]] == names
    assert [row["rank"] for row in found["images"]] == [1, 2, 3]
    m = fastdps.load("alexnet")
    for row in found["images"]:
        expected = m(pixels(folder / "ref.png"), pixels(row["path"])).item()
        assert row["distance"] == pytest.approx(expected, abs=1e-5)
    assert (found["context"], found["height"], found["width"]) == (None, 72, 72)
    top = score(capsys, folder / "ref.png", folder / "others", "--metric", "alexnet", "--top", 1)
    assert (len(top["images"]), top["compared"]) == (1, 3)
    assert score(capsys, folder / "ref.png", folder / "ref.png", "--metric", "alexnet")["images"][0]["distance"] == 0


def test_the_context_decides(folder, capsys):
    rankings = all_rankings(NAMES)[:2]
    weights = torch.rand(2, 1152, generator=torch.Generator().manual_seed(0))
    PerceptualMetric(Backbone("alexnet"), weights, rankings).save(folder / "m.safetensors")
    images = folder / "ref.png", folder / "others" / "b.png"
    whole = PerceptualMetric.load(folder / "m.safetensors")(*(pixels(path)[None] / 255 for path in images))[0]
    for ranking, expected in zip(rankings, whole.tolist(), strict=True):
        found = score(capsys, *images, "--metric", folder / "m.safetensors", "--context", ",".join(ranking))
        assert found["context"] == list(ranking)
        assert found["images"][0]["distance"] == pytest.approx(expected, rel=1e-5)
    assert main(["score", *map(str, images), "--metric", str(folder / "m.safetensors")]) == 1
    assert "has 2 contexts. Choose one" in capsys.readouterr().err


def test_the_table(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    Image.open(folder / "others" / "b.png").save(folder / "others" / "[red]x.png")
    assert main(["score", str(folder / "ref.png"), str(folder / "others"), "--metric", "alexnet", "--top", "3"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "alexnet(notadapted)" in shown
    assert shown.index("a.png") < shown.index("c.png")
    assert "[red]x.png" in shown
    assert "Thenearest3of4." in shown


def test_images_of_other_sizes(folder, capsys):
    Image.new("RGB", (90, 80)).save(folder / "other.png")
    argv = ["score", str(folder / "ref.png"), str(folder / "other.png"), "--metric", "alexnet"]
    assert main(argv) == 1
    message = capsys.readouterr().err
    assert f"{folder / 'other.png'} has 90 x 80 pixels, and {folder / 'ref.png'} 72 x 72" in message
    assert "--size 72" in message
    assert main([*argv, "--size", "72"]) == 0
    capsys.readouterr()
    assert score(capsys, *argv[1:], "--size", 40)["height"] == 40
    assert main([*argv, "--size", "20"]) == 1
    assert "too small for alexnet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no image", "bad.png does not decode"), (None, "bad.png does not exist")],
)
def test_bad_files_are_named(folder, capsys, content, message):
    if content:
        (folder / "bad.png").write_bytes(content)
    assert main(["score", str(folder / "ref.png"), str(folder / "bad.png"), "--metric", "alexnet"]) == 1
    assert message in capsys.readouterr().err
    assert main(["score", str(folder / "bad.png"), str(folder / "ref.png"), "--metric", "alexnet"]) == 1
    assert message in capsys.readouterr().err


def test_what_a_folder_holds_besides_images_to_compare(folder, capsys):
    """The reference itself is left out, and what cannot be read is skipped and counted; a named file is an error."""
    others = folder / "others"
    (others / "bad.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((72, 72), np.uint16)).save(others / "deep" / "deep16.png")
    (others / "same.png").symlink_to(folder / "ref.png")
    assert main(["score", str(folder / "ref.png"), str(others), "--metric", "alexnet", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [Path(row["path"]).name for row in found["images"]] == ["a.png", "c.png", "b.png"]
    assert found["compared"] == 3
    assert {Path(one["path"]).name: one["reason"].split()[0] for one in found["skipped"]} == {
        "bad.png": "does",
        "deep16.png": "has",
    }
    assert "skipped 2 of 5 images: " in printed.err
    assert f"{others / 'deep/deep16.png'} has pixels of more than 8 bits" in printed.err
    assert main(["score", str(folder / "ref.png"), str(others / "bad.png"), "--metric", "alexnet"]) == 1
    for name in ("b.png", "c.png", "deep/a.png"):
        (others / name).unlink()
    assert main(["score", str(folder / "ref.png"), str(others), "--metric", "alexnet"]) == 1
    assert "none of the 2 images can be read" in capsys.readouterr().err
    for name in ("bad.png", "deep/deep16.png"):
        (others / name).unlink()
    assert main(["score", str(folder / "ref.png"), str(others), "--metric", "alexnet"]) == 1
    assert "holds no image but the reference" in capsys.readouterr().err


def test_a_metric_adapted_to_judgements_is_called_that(folder, capsys):
    """A metric that was adapted to triplets has neither a ranking nor the name of a judge."""
    weights = torch.rand(1, 1152, generator=torch.Generator().manual_seed(0))
    PerceptualMetric(Backbone("alexnet"), weights).save(folder / "m.safetensors")
    images = str(folder / "ref.png"), str(folder / "others" / "b.png")
    assert main(["score", *images, "--metric", str(folder / "m.safetensors")]) == 0
    assert "alexnet (adapted to judgements)" in capsys.readouterr().out
    assert "alexnet, spatial: adapted to judgements" in repr(fastdps.load(folder / "m.safetensors"))
    assert "alexnet, spatial: not adapted" in repr(fastdps.load("alexnet"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "0"], "--top must be at least 1"),
        (["--size", "-1"], "--size must be at least 1"),
        (["--map", "x.png"], "REF and one image differ, not 3"),
        (["--device", "cudda"], "--device cudda cannot be used"),
        (["--context", "a,b"], "alexnet is a backbone that is not adapted"),
    ],
)
def test_options_that_do_not_fit(folder, capsys, options, message):
    assert main(["score", str(folder / "ref.png"), str(folder / "others"), "--metric", "alexnet", *options]) == 1
    assert message in capsys.readouterr().err


def test_the_map_is_bright_where_images_differ(folder, capsys):
    image = np.array(Image.open(folder / "ref.png"))
    image[40:56, 8:24] = 255 - image[40:56, 8:24]
    Image.fromarray(image).save(folder / "changed.png")
    out = folder / "pictures" / "map.png"
    found = score(capsys, folder / "ref.png", folder / "changed.png", "--metric", "alexnet", "--map", out)
    assert found["map"] == str(out)
    picture = np.array(Image.open(out))
    assert picture.shape[1] > 3 * 256  # three panels side by side
    m = fastdps.load("alexnet")
    distances = m(pixels(folder / "ref.png"), pixels(folder / "changed.png"), spatial=True)[0]
    row, column = np.unravel_index(distances.argmax().item(), distances.shape)
    assert 40 <= row < 56
    assert 8 <= column < 24
    shown = overlay(image, distances.numpy()).astype(int)
    grey = np.array(Image.fromarray(image).convert("L"), dtype=int)[..., None]
    assert np.ptp(shown[row, column]) > 60  # a colour
    assert np.abs(shown - grey)[:4, -8:].max() < 40  # hardly touched far away


def test_a_map_of_equal_images_is_their_grey(folder):
    image = np.array(Image.open(folder / "ref.png"))
    grey = np.array(Image.fromarray(image).convert("L"))
    assert (overlay(image, np.zeros(image.shape[:2])) == grey[..., None]).all()


def test_a_map_that_cannot_be_written(folder, capsys):
    argv = ["score", str(folder / "ref.png"), str(folder / "others" / "b.png"), "--metric", "alexnet", "--map"]
    assert main([*argv, str(folder / "map.xyz")]) == 1
    assert "map.xyz cannot be written" in capsys.readouterr().err
    assert main([*argv, str(folder / "ref.png" / "map.png")]) == 1
    assert "map.png cannot be written" in capsys.readouterr().err
