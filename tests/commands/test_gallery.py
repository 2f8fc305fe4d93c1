"""`fastdps gallery`: the pictures show the samples of the set, their distortions and votes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastdps.commands.cli import main
from fastdps.contexts.distortions import DISTORTIONS, apply_plan, draw_plan
from fastdps.loading.loader import open_shards
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.bapps import Jnd
from fastdps.packing.sources.folder import Folder
from fastdps.packing.sources.registry import open_source
from fastdps.packing.sources.triplets import Triplets
from fastdps.report import gallery
from fastdps.report.pictures import CHOSEN, FRAME, GAP, LINE, Panel, draw_sheet
from fastdps.shards.format import read_manifest
from fastdps.shards.judgements import read_ids, read_judgements
from helpers.judgement_files import judgements_of, names_of, write_csv, write_images
from helpers.packed import encoded, noise, photo, read_images, write_noise_folder


@pytest.fixture
def images(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(10):
        (tmp_path / f"in/{number}.png").write_bytes(encoded(photo(64, 64, seed=number), "PNG"))
    pack(Folder(tmp_path / "in"), tmp_path / "out", PackOptions(), workers=1)
    return tmp_path / "out/train"


def panel_at(sheet: np.ndarray, row: int, column: int, rows: int, side: int = 64, factor: int = 2) -> np.ndarray:
    """The pixels of one panel, by the layout that `draw_sheet` documents, scaled back."""
    pitch_y = (sheet.shape[0] - 2 * GAP - LINE) // rows
    left, top = GAP + column * (factor * side + GAP), 2 * GAP + LINE + row * pitch_y
    return sheet[top : top + factor * side : factor, left : left + factor * side : factor]


def show(directory, tmp_path, *options) -> np.ndarray:
    assert main(["gallery", str(directory), "--out", str(tmp_path / "deep/grid.png"), *map(str, options)]) == 0
    return np.asarray(Image.open(tmp_path / "deep/grid.png"))


def test_images_are_shown_as_they_are(images, tmp_path, capsys):
    sheet = show(images, tmp_path, "--samples", 9)
    shown = [panel_at(sheet, row, column, rows=3).tobytes() for row in range(3) for column in range(3)]
    packed = {pixels.tobytes() for pixels in read_images(images, 64).values()}
    assert len(set(shown)) == 9
    assert set(shown) <= packed
    assert capsys.readouterr().out == f"{tmp_path / 'deep/grid.png'}\n"


def test_distorted_images_are_those_that_training_sees(images, tmp_path):
    sheet = show(images, tmp_path, "--distort", "--samples", 3, "--seed", 4)
    with_ids = read_images(images, 64)
    for row in range(3):
        reference = panel_at(sheet, row, 0, rows=3)
        (sample_id,) = (key for key, pixels in with_ids.items() if (pixels == reference).all())
        plan = draw_plan(torch.tensor([sample_id]), seed=4, epoch=0)
        views = apply_plan(torch.from_numpy(reference.copy()).permute(2, 0, 1)[None].float() / 255, plan)[0]
        for d in range(len(DISTORTIONS)):
            expected = (views[d] * 255).round().permute(1, 2, 0).numpy()
            assert abs(panel_at(sheet, row, d + 1, rows=3) - expected).max() <= 1


def test_a_picture_of_few_colours_is_smaller_and_looks_the_same(images, tmp_path):
    options = ["--distort", "--samples", 3, "--title", "the six distortions"]
    full, full_bytes = show(images, tmp_path, *options), (tmp_path / "deep/grid.png").stat().st_size
    assert (
        main(["gallery", str(images), "--out", str(tmp_path / "few.png"), "--colors", "256", *map(str, options)]) == 0
    )
    with Image.open(tmp_path / "few.png") as picture:
        few = np.asarray(picture.convert("RGB"))
    assert (tmp_path / "few.png").stat().st_size < full_bytes / 2
    assert len(np.unique(few.reshape(-1, 3), axis=0)) <= 256
    assert np.abs(few.astype(int) - full).mean() < 8


def test_captions_name_the_distortions_and_what_was_drawn(images):
    batch = next(open_shards(images, batch_size=2).epoch(0))
    for row in gallery.distorted_rows(batch, seed=0):
        assert [panel.caption.split("\n")[0] for panel in row[1:]] == list(DISTORTIONS)
        assert all(parameter.name in row[1].caption for parameter in DISTORTIONS["rotate"].parameters)


def test_triplets_are_shown_with_their_votes(tmp_path):
    write_noise_folder(tmp_path / "in", 6)
    rows = ["ref,p0,p1,judge", "a/000.png,b/001.png,a/002.png,0.8", "b/003.png,a/004.png,b/005.png,0.25"]
    (tmp_path / "in/votes.csv").write_text("\n".join(rows))
    pack(Triplets(tmp_path / "in/votes.csv"), tmp_path / "out", PackOptions(size=16), workers=1)
    batch = next(open_shards(tmp_path / "out/train", batch_size=2).epoch(0))
    found = {
        tuple((panel.caption.split(" ")[1], panel.chosen) for panel in (row[0], row[2]))
        for row in gallery.judged_rows(batch, "triplets")
    }
    assert found == {(("20%", False), ("80%", True)), (("75%", True), ("25%", False))}
    sheet = show(tmp_path / "out/train", tmp_path)
    assert (sheet == CHOSEN).all(axis=2).sum() > 4 * FRAME * 100


def test_pairs_are_shown_with_their_votes(tmp_path):
    for component in ("p0", "p1", "same"):
        (tmp_path / "jnd" / component).mkdir(parents=True)
    for number in range(3):
        for component in ("p0", "p1"):
            (tmp_path / f"jnd/{component}/{number}.png").write_bytes(encoded(noise(64, 64, 3, seed=number), "PNG"))
        np.save(tmp_path / f"jnd/same/{number}.npy", np.array([number / 3]))
    pack(Jnd(tmp_path, "jnd"), tmp_path / "out", PackOptions(), workers=1)
    batch = next(open_shards(tmp_path / "out/train", batch_size=3).epoch(0))
    captions = sorted(row[1].caption for row in gallery.judged_rows(batch, "pairs"))
    assert captions == ["p1: 0% say same", "p1: 33% say same", "p1: 67% say same"]
    show(tmp_path / "out/train", tmp_path)


@pytest.fixture
def judged(tmp_path):
    """Seven judgements of nine images, packed without a tenth one, so that ids are not positions."""
    write_images(tmp_path / "in", 10, side=64)
    (tmp_path / "in/images/009.png").write_bytes(b"no image")
    rows = [[f"images/00{n}.png", f"images/00{n + 1}.png", f"images/00{n + 2}.png", n % 5 / 4, 4] for n in range(8)]
    path = write_csv(tmp_path / "in/a.csv", [[*row, "ann"] for row in rows])
    options = PackOptions(samples_per_shard=4, max_rejects=0.2, seed=1)
    pack(open_source("judgements", path, by="person"), tmp_path / "out", options, workers=1)
    assert max(names_of(tmp_path / "out/train")) == 9
    return tmp_path / "out/train"


def test_judgements_are_shown_with_their_images_and_votes(judged, tmp_path):
    sheet = show(judged, tmp_path, "--samples", 6, "--seed", 1)
    packed, rows = read_images(judged, 64), judgements_of(judged)
    keys = {pixels.tobytes(): name for name, pixels in zip(names_of(judged).values(), packed.values(), strict=True)}
    shown = [[keys[panel_at(sheet, row, column, rows=6).tobytes()] for column in range(3)] for row in range(6)]
    assert len({tuple(names) for names in shown}) == 6
    by_images = {(row["a"], row["ref"], row["b"]): row for row in rows}
    pitch_y = (sheet.shape[0] - 2 * GAP - LINE) // 6
    for number, names in enumerate(shown):
        row = by_images[tuple(names)]
        top = 2 * GAP + LINE + number * pitch_y - FRAME
        framed = [bool((sheet[top, GAP + column * (128 + GAP)] == CHOSEN).all()) for column in range(3)]
        assert framed == [row["votes_a"] > row["votes_b"], False, row["votes_b"] > row["votes_a"]]
    one = show(judged, tmp_path, "--samples", 1, "--seed", 1)
    assert (panel_at(one, 0, 1, rows=1) == panel_at(sheet, 0, 1, rows=6)).all()
    other = show(judged, tmp_path, "--samples", 6, "--seed", 2)
    assert (other != sheet).any()


def test_captions_of_judgements_name_votes_and_judge(judged):
    table, ids = read_judgements(judged), read_ids(judged, read_manifest(judged))
    rows = gallery.judgement_rows(open_shards(judged, batch_size=2, seed=None), table, ids)
    assert [panel.caption.partition(": ")[2] for panel in rows[1]] == ["3 votes", "", "1 votes"]
    assert rows[1][1].caption == f"ref {table.ref[1]}\nann"
    assert len(rows) == 7


def test_judgements_are_not_distorted(judged, tmp_path, capsys):
    assert main(["gallery", str(judged), "--out", str(tmp_path / "x.png"), "--distort"]) == 1
    assert "holds judgements; --distort is for sets of images" in capsys.readouterr().err


def test_images_of_their_own_sizes_are_shown_too(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(encoded(photo(90, 200), "JPEG"))
    pack(Folder(tmp_path / "in"), tmp_path / "out", PackOptions("keep", None), workers=1)
    assert show(tmp_path / "out/train", tmp_path).shape[0] > gallery.OWN_SIZES_SHOWN_AT
    assert show(tmp_path / "out/train", tmp_path, "--distort", "--size", 64).shape[1] > 7 * 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "--samples must be at least 1"),
        (["--distort", "--size", "4"], "the blur needs at least"),
        (["--colors", "1"], "--colors must be 2 to 256"),
        (["--out", "grid.nothing"], "grid.nothing cannot be written: unknown file extension"),
    ],
)
def test_bad_options_are_errors(images, tmp_path, capsys, options, message):
    options = [str(tmp_path / option) if option.startswith("grid") else option for option in options]
    assert main(["gallery", str(images), "--out", str(tmp_path / "grid.png"), *options]) == 1
    assert message in capsys.readouterr().err


def test_only_images_are_distorted(tmp_path, capsys):
    write_noise_folder(tmp_path / "in", 3)
    (tmp_path / "in/votes.csv").write_text("ref,p0,p1,judge\na/000.png,b/001.png,a/002.png,1\n")
    pack(Triplets(tmp_path / "in/votes.csv"), tmp_path / "out", PackOptions(size=16), workers=1)
    assert main(["gallery", str(tmp_path / "out/train"), "--out", str(tmp_path / "x.png"), "--distort"]) == 1
    assert "holds triplets; --distort is for sets of images" in capsys.readouterr().err


def test_a_sheet_needs_a_panel_and_cuts_long_captions():
    with pytest.raises(ValueError, match="at least one panel"):
        draw_sheet([], "nothing")
    pixels = np.zeros((128, 128, 3), np.uint8)
    short, long = (draw_sheet([[Panel(pixels, caption)]], "t") for caption in ("a", "a" * 500))
    assert short.size == long.size
