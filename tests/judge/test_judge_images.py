"""The pictures and triplets of the page: by number, from folders and shard sets, written where answers say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastdps.contexts.distortions import NAMES, apply_plan, draw_plan
from fastdps.errors import ConfigError, FastDPSError, SampleError
from fastdps.judge.images import PlainPictures, open_images
from fastdps.judge.run import JudgeOptions, open_pictures
from fastdps.judge.triplets import GivenTriplets, ImageTriplets, Triplet, VersionTriplets
from fastdps.judge.versions import VERSIONS, DistortedPictures
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.folder import Folder
from fastdps.packing.sources.judgements import JudgementFile
from helpers.judgement_files import random_rows, write_csv, write_images
from helpers.packed import write_noise_folder

SIDE = 32


@pytest.fixture
def photos(tmp_path):
    write_noise_folder(tmp_path / "photos", 8, SIDE)
    return tmp_path / "photos"


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def shown(pictures, number):
    return np.asarray(pictures.pixels(number))


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_shard_sets_show_the_images_that_were_packed(photos, tmp_path, out, encoding):
    pack(Folder(photos), tmp_path / "set", PackOptions(size=SIDE, encoding=encoding, samples_per_shard=3), workers=1)
    source = open_images(tmp_path / "set/train")
    assert sorted(source.names) == sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    pictures = PlainPictures(source, out)
    for number, name in enumerate(source.names):
        pixels = np.asarray(Image.open(photos / name))
        assert (shown(pictures, number) == pixels).all()
        assert pictures.path_of(number) == f"images/{source.ids[number]:09d}.png"
        pictures.write(number)
        assert (np.asarray(Image.open(out / pictures.path_of(number))) == pixels).all()
    some = source.select([5, 2])
    assert (some.pixels(1) == source.pixels(2)).all()
    assert some.ids == [source.ids[5], source.ids[2]]


def test_answers_name_the_files_of_a_folder(photos, tmp_path, out):
    """The paths lead from the directory of the answers to the images, also through links."""
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep/er")
    (tmp_path / "link/out").mkdir()
    (tmp_path / "photos link").symlink_to(photos)
    for folder in (photos, tmp_path / "photos link"):
        for directory in (out, tmp_path / "link/out"):
            pictures = PlainPictures(open_images(folder), directory)
            for number in range(len(pictures)):
                pictures.write(number)
                path = directory / pictures.path_of(number)
                assert (np.asarray(Image.open(path)) == shown(pictures, number)).all()
            assert list(directory.iterdir()) == []


def test_a_file_whose_name_is_not_text_is_copied(photos, out):
    (photos / "a/000.png").rename(photos / "a/\udcff.png")
    pictures = PlainPictures(open_images(photos), out)
    number = next(n for n in range(8) if "\\xff" in pictures.name(n))
    pictures.write(number)
    assert (np.asarray(Image.open(out / pictures.path_of(number))) == shown(pictures, number)).all()


def test_versions_are_the_distortions_of_training(photos, out):
    source = open_images(photos)
    pictures = DistortedPictures(source, out, size=SIDE, seed=7)
    assert len(pictures) == 8 * VERSIONS
    for image in (0, 5):
        pixels = torch.tensor(source.pixels(image)).movedim(-1, 0)[None] / 255
        views = apply_plan(pixels, draw_plan(torch.tensor([image]), seed=7, epoch=0))[0]
        assert (shown(pictures, image * VERSIONS) == source.pixels(image)).all()
        for version, name in enumerate(NAMES, start=1):
            number = image * VERSIONS + version
            wanted = (views[version - 1].movedim(0, -1) * 255).round().numpy()
            assert np.abs(shown(pictures, number) - wanted).max() <= 1
            assert pictures.name(number).endswith(f"({name})")
            pictures.write(number)
            assert (np.asarray(Image.open(out / pictures.path_of(number))) == shown(pictures, number)).all()


def test_every_picture_has_a_path_of_its_own(photos, out):
    for pictures in (
        PlainPictures(open_images(photos), out),
        DistortedPictures(open_images(photos), out, size=SIDE, seed=0),
    ):
        numbers = pictures.numbers()
        assert sorted(numbers.values()) == list(range(len(pictures)))


def test_random_triplets():
    images, versions = ImageTriplets(20, 1), VersionTriplets(20, 1)
    for deck in (images, versions):
        drawn = [deck.random(number) for number in range(300)]
        assert drawn == [deck.random(number) for number in range(300)]
        assert all(len(set(triplet)) == 3 for triplet in drawn)
        assert len({triplet.key for triplet in drawn}) > 100
    assert {number for triplet in map(images.random, range(300)) for number in triplet} == set(range(20))
    for ref, a, b in map(versions.random, range(300)):
        assert ref % VERSIONS == 0
        assert a // VERSIONS == b // VERSIONS == ref // VERSIONS
    assert images.random(0) != ImageTriplets(20, 2).random(0)


def test_the_triplets_of_a_file_are_asked(photos, tmp_path, out):
    """Names are those of the source, or paths relative to the file; two and three columns have other names, too."""
    names = ["a/000.png", "b/001.png", "a/002.png"]
    rows = [names, [f"photos/{name}" for name in names[::-1]]]
    file = write_csv(tmp_path / "ask.csv", rows, ("ref", "a", "b"))
    pictures, deck = open_pictures(photos, out, JudgeOptions(triplets=file))
    assert deck.count == 2
    asked = {tuple(pictures.name(number) for number in deck.random(n)) for n in range(2)}
    assert asked == {tuple(names), tuple(names[::-1])}
    assert len(pictures) == 3  # only these images are read


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([["a/000.png", "b/001.png", "nothing.png"]], "line 2 names 'nothing.png', which is not one of the images"),
        ([["a/000.png", "b/001.png", "../secret.png"]], "which is not one of the images"),
        ([["a/000.png", "b/001.png", "a/000.png"]], "line 2 names an image twice"),
        ([["a/000.png", "b/001.png", ""]], "line 2 has no p1"),
        ([["a/000.png", "b/001.png"]], "line 2 has 2 cells"),
    ],
)
def test_triplets_that_cannot_be_asked_are_errors(photos, tmp_path, out, rows, why):
    (tmp_path / "secret.png").write_bytes((photos / "a/000.png").read_bytes())
    file = write_csv(tmp_path / "ask.csv", rows, ("ref", "p0", "p1"))
    with pytest.raises(FastDPSError, match=why):
        open_pictures(photos, out, JudgeOptions(triplets=file))


def test_a_file_without_the_columns_is_an_error(photos, tmp_path, out):
    (tmp_path / "ask.jsonl").write_text(json.dumps({"ref": "a/000.png", "x": "b/001.png"}) + "\n")
    with pytest.raises(FastDPSError, match="triplets need ref, p0 or a, p1 or b"):
        open_pictures(photos, out, JudgeOptions(triplets=tmp_path / "ask.jsonl"))


def test_a_judgement_set_asks_its_own_triplets(tmp_path, out):
    write_images(tmp_path, 10, SIDE)
    file = write_csv(tmp_path / "judged.csv", random_rows(30, 10))
    pack(JudgementFile(file), tmp_path / "set", PackOptions(size=SIDE), workers=1)
    pictures, deck = open_pictures(tmp_path / "set/train", out, JudgeOptions())
    asked = {Triplet(*deck.random(n)).key for n in range(deck.count)}
    number = {pictures.name(n): n for n in range(len(pictures))}
    wanted = {Triplet(*(number[name] for name in row[:3])).key for row in random_rows(30, 10)}
    assert asked == wanted
    _, deck = open_pictures(tmp_path / "set/train", out, JudgeOptions(versions="images"))
    assert isinstance(deck, ImageTriplets | GivenTriplets)
    assert deck.count is None or deck.count > len(wanted)


def test_unreadable_images_are_left_out_and_named(photos, out, capsys):
    (photos / "b/001.png").write_bytes(b"no image")
    pictures, _ = open_pictures(photos, out, JudgeOptions())
    assert len(pictures) == 7
    assert "001.png does not decode" in " ".join(capsys.readouterr().err.split())
    for name in ("003", "005"):
        (photos / f"b/{name}.png").write_bytes(b"no image")
    with pytest.raises(FastDPSError, match="3 of 8 images cannot be read"):
        open_pictures(photos, out, JudgeOptions())


def test_large_sets_are_sampled(photos, out, capsys):
    pictures, _ = open_pictures(photos, out, JudgeOptions(most_images=5))
    assert len(pictures) == 5
    assert "5 of 8 images, drawn at random" in capsys.readouterr().err


def test_what_is_not_a_set_of_images(photos, tmp_path):
    pack(Folder(photos), tmp_path / "set", PackOptions(size=SIDE), workers=1)
    with pytest.raises(ConfigError, match="holds the shard sets train"):
        open_images(tmp_path / "set")
    with pytest.raises(ConfigError, match="is not a directory"):
        open_images(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FastDPSError, match="contains no image files"):
        open_images(tmp_path / "empty")
    (tmp_path / "empty/1.png").write_bytes((photos / "a/000.png").read_bytes())
    with pytest.raises(FastDPSError, match="1 images"):
        open_images(tmp_path / "empty")


def test_an_image_that_disappears_is_an_error_that_names_it(photos):
    source = open_images(photos)
    (photos / "a/000.png").unlink()
    with pytest.raises(SampleError, match=r"000\.png cannot be read"):
        source.pixels(0)
