"""The box "Use this metric": its lines run as they are, for runs of every kind."""

import shlex
from dataclasses import replace

import pytest
import torch
from PIL import Image

from fastdps.commands.cli import main
from fastdps.metric.backbones import Backbone
from fastdps.metric.origin import Origin
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.report.reading import read_run
from fastdps.report.usage import usage
from helpers.made_up_judges import make_judged_run
from helpers.made_up_runs import NAMES, make_run

RANKINGS = [NAMES, NAMES[::-1], NAMES[1:] + NAMES[:1]]


@pytest.fixture(scope="module")
def backbone(weights_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        return Backbone("alexnet")


def save(run, backbone, *, rankings=(), judges=(), size=None, include_backbone=False):
    weights = torch.rand(max(1, len(rankings), len(judges)), 1152, generator=torch.Generator().manual_seed(0))
    metric = PerceptualMetric(backbone, weights, list(rankings), judges=tuple(judges))
    metric.origin = replace(Origin(), image_size=size)
    metric.save(run / "metric.safetensors", include_backbone=include_backbone)


@pytest.mark.parametrize("kind", ["contexts", "one context", "judges", "own backbone"])
def test_the_lines_of_the_box_work_as_they_are(kind, tmp_path, backbone, weights_dir, monkeypatch, capsys):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("one.jpg", "other.jpg", "photos/a.jpg", "photos/b.jpg")):
        Image.effect_noise((80 + 10 * number, 70), 60).convert("RGB").save(name)
    run = tmp_path / "my runs" / "it's"
    if kind == "judges":
        make_judged_run(run, ["anna", "ben"])
        save(run, backbone, judges=("pooled", "anna", "ben"), size=(64, 64))
    else:
        rankings = RANKINGS if kind == "contexts" else RANKINGS[:1]
        make_run(run, [list(ranking) for ranking in rankings])
        size = (48, 48) if kind == "contexts" else None  # older files do not say it
        save(run, backbone, rankings=rankings, size=size, include_backbone=kind == "own backbone")
    record = read_run(run.relative_to(tmp_path))  # as it was typed
    box = usage(record)
    python, command = (
        text.unescape().replace('<span class="chosen">', "").replace("</span>", "")
        for text in (box.python, box.command)
    )
    assert len(python.splitlines()) == 3
    assert "my runs/it" in python
    assert str(tmp_path) not in python + command
    made = {}
    exec(python, made)
    assert made["distance"].shape == (1,)
    assert made["metric"].judge == ("pooled" if kind == "judges" else None)
    program, *arguments = shlex.split(command)
    assert program == "fastdps"
    assert main(arguments) == 0
    assert "photos/b.jpg" in capsys.readouterr().out
    if kind == "contexts":
        best = max(record.contexts, key=lambda row: row["adapted_accuracy"])["ranking"]
        assert list(made["metric"].context) == best
        assert f"--context {','.join(best)} --size 48" in command
    notes = " ".join(box.notes)
    assert ("Nothing is downloaded" in notes) == (kind == "own backbone")
    assert ('context="anna"' in notes) == (kind == "judges")
    assert ("which the metric keeps" in notes) == (kind in ("contexts", "judges"))


def test_a_run_without_a_metric_has_no_box(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metric.safetensors").unlink()
    assert usage(read_run(run)) is None
