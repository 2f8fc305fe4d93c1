"""`python -m bench elastic`: one training on any number of processes."""

import pytest

from bench.__main__ import main
from bench.analyse.elastic import CURVES, STEPS, Phase, draw, largest_difference, pack_images, train


def test_all_curves_have_all_steps():
    assert {sum(phase.steps for phase in phases) for phases in CURVES.values()} == {STEPS}
    assert largest_difference([[1.0, 2.0], [1.0, 2.5], [0.9, 2.0]]) == 0.5


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    draw({name: [1.0, 0.5, 0.25] for name in CURVES}, tmp_path / "elastic.png")
    assert (tmp_path / "elastic.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_is_a_png(capsys):
    assert main(["elastic", "--out", "elastic.pdf"]) == 1
    assert "the picture is a PNG" in capsys.readouterr().err


@pytest.mark.slow
def test_the_losses_do_not_depend_on_the_number_of_processes(tmp_path):
    shards = pack_images(tmp_path / "set")
    alone = train(shards, [Phase(1, 12)], tmp_path)
    together = train(shards, [Phase(2, 5), Phase(1, 7)], tmp_path)
    assert largest_difference([alone, together]) < 1e-9
    assert alone[-1] != alone[0]
