"""`bench picture`: the content of the bars, and the picture file."""

from __future__ import annotations

import builtins

import pytest
from PIL import Image

import bench.__main__ as command
from bench.analyse.picture import COLOURS, bars
from bench.harness.measure import Measurement
from fastdps.errors import ConfigError
from helpers.made_up_results import results, write

PARTS_S = {"load": 1e-5, "distort": 2e-4, "features": 1e-3, "distances": 1e-4, "heads": 1e-4}


def rows(device="cpu"):
    return results(
        [
            Measurement("train", "the usual way, 1 context", (100.0,), parts_s=dict.fromkeys(PARTS_S, 2e-3)),
            Measurement("train", "the usual way with its backbone trained, 1 context", (50.0,)),
            Measurement("train", "lin, 1 context", (500.0,), parts_s=PARTS_S),
            Measurement("train", "lin, 720 contexts", (400.0,), parts_s=PARTS_S | {"heads": 3e-3}),
            Measurement("train", "tune, 1 context", (200.0,), parts_s=PARTS_S),
            Measurement("evaluate", "720 contexts", (100.0,), parts_s=PARTS_S),
        ],
        device=device,
    )


def test_bars_are_the_parts_and_the_rest():
    usual, one, every = bars(rows())
    assert [bar.label for bar in (usual, one, every)] == [
        "the usual way, 1 context",
        "lin, 1 context",
        "lin, 720 contexts",
    ]
    assert list(one.parts_ms) == list(COLOURS)
    assert sum(one.parts_ms.values()) == pytest.approx(one.whole_ms) == pytest.approx(2)
    assert one.parts_ms["features"] == pytest.approx(1)
    assert one.parts_ms["rest"] == pytest.approx(0.59)
    # Parts that together take longer than the whole leave no rest, and are shown as they are.
    assert every.parts_ms["rest"] == 0
    assert sum(every.parts_ms.values()) > every.whole_ms


def test_on_a_gpu_loading_runs_concurrently():
    one = bars(rows(device="cuda"))[1]
    assert one.beside_ms == {"load": pytest.approx(0.01)}
    assert "load" not in one.parts_ms
    assert sum(one.parts_ms.values()) == pytest.approx(one.whole_ms)


def test_the_file_is_a_picture_with_every_part_in_its_colour(tmp_path):
    path, out = write(tmp_path / "r.json", rows()), tmp_path / "picture.png"
    assert command.main(["picture", "--json", str(path), "--out", str(out)]) == 0
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        counts = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    areas = {name: counts.get(tuple(bytes.fromhex(colour[1:])), 0) for name, colour in COLOURS.items()}
    assert all(area > 100 for area in areas.values())
    assert areas["features"] > areas["distances"]


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        (results([Measurement("load", "raw", (1.0,))]), "p.png", "no row of train with parts"),
        (rows(), "p.pdf", "the picture is a PNG"),
    ],
)
def test_results_that_cannot_be_drawn_are_errors(tmp_path, content, out, message, capsys):
    path = write(tmp_path / "r.json", content)
    assert command.main(["picture", "--json", str(path), "--out", str(tmp_path / out)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / out).exists()


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    import_as_before = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return import_as_before(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    from bench.analyse.picture import draw

    with pytest.raises(ConfigError, match=r"pip install 'fastdps\[bench\]'"):
        draw(bars(rows()), "a machine", tmp_path / "p.png")
