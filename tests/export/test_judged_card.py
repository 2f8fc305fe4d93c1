"""Metrics of judges on the command line: `fastdps export` and its card, and `fastdps score`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastdps
from fastdps.commands.cli import main
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from helpers.made_up_judges import make_judged_run
from helpers.made_up_runs import make_run

HOSTILE = "a|b\n# <b>[x](javascript:y)\x1b[31m`"


@pytest.fixture(autouse=True)
def _weights(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def run(tmp_path_factory, weights_dir) -> Path:
    """A scored run with heads of two judges, one of whom has a name that is markup."""
    path = make_judged_run(tmp_path_factory.mktemp("runs") / "run", ["anna", HOSTILE])
    weights = torch.rand(3, 1152, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        metric = PerceptualMetric(Backbone("alexnet"), weights, judges=("pooled", "anna", HOSTILE))
        metric.save(path / "metric.safetensors")
    return path


def export(run: Path, out: Path, *options: str) -> tuple[dict, str]:
    assert main(["export", str(run), "--format", "lpips", "--out", str(out), *options]) == 0
    return json.loads(Path(f"{out}.card.json").read_text()), Path(f"{out}.card.md").read_text()


def test_the_card_of_a_judge_has_the_agreement_with_that_judge(run, tmp_path, capsys):
    card, text = export(run, tmp_path / "a.pth", "--context", "anna")
    scores = json.loads((run / "scores.json").read_text())["judgements"]
    assert (card["judge"], card["context"]) == ("anna", None)
    assert card["scores"]["judgements"]["votes"] == scores["judges"]["anna"]["votes"]
    assert card["scores"]["judgements"]["set"] == {"sha256": "ef" * 32, "triplets": 4560, "images": 90}
    assert "path" not in json.dumps(card["scores"])  # paths may contain names of people
    assert "| adapted to | judgements of anna |" in text
    votes = scores["judges"]["anna"]["votes"]
    assert f"| agreement with votes | 0.7000 | {votes['after']['value']:.4f} | 0.8500 |" in text
    assert f"It changed by {votes['change']['value']:+.4f}" in text
    assert "epochs" not in text  # heads on judgement sets are fitted without epochs
    assert "a.pth (judgements of anna): lpips" in capsys.readouterr().out.replace("\n", " ")


def test_without_a_context_it_is_the_pooled_head(run, tmp_path):
    card, text = export(run, tmp_path / "a.pth")
    scores = json.loads((run / "scores.json").read_text())["judgements"]
    assert card["judge"] == "pooled"
    assert card["scores"]["judgements"]["votes"] == scores["pooled"]["votes"]
    assert "| adapted to | judgements of all judges together (pooled) |" in text


def test_a_name_that_is_markup_stays_in_its_cell(run, tmp_path, capsys):
    card, text = export(run, tmp_path / "a.pth", "--context", HOSTILE)
    assert card["judge"] == HOSTILE
    (line,) = [line for line in text.splitlines() if line.startswith("| adapted to |")]
    assert line.count("|") == 3
    assert not set("<>[]`\x1b") & set(line)
    assert "\x1b" not in capsys.readouterr().out


def test_a_judge_without_scores_and_a_run_without_scores(run, tmp_path):
    unscored = shutil.copytree(run, tmp_path / "run")
    scores = json.loads((unscored / "scores.json").read_text())
    del scores["judgements"]["judges"]["anna"]
    (unscored / "scores.json").write_text(json.dumps(scores))
    card, text = export(unscored, tmp_path / "a.pth", "--context", "anna")
    assert card["scores"]["judgements"] is None
    assert "Not measured" in text
    (unscored / "scores.json").unlink()
    assert export(unscored, tmp_path / "b.pth", "--context", "anna")[0]["scores"] is None


def test_the_metric_of_another_run_is_an_error(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "run")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"judges": ["pooled", "bert", HOSTILE]}))
    assert main(["export", str(other), "--format", "lpips", "--out", str(tmp_path / "a.pth"), "--context", "anna"]) == 1
    assert "does not have the context anna" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "lpips", "--out", str(tmp_path / "a.pth"), "--context", "ana"]) == 1
    assert "Did you mean 'anna'?" in capsys.readouterr().err


def test_cards_of_rankings_have_no_judge(tmp_path):
    names = ["rotate", "translate", "darken", "color", "blur", "zoom_in"]
    run = make_run(tmp_path / "run", [names])
    PerceptualMetric(Backbone("alexnet"), torch.ones(1, 1152), [tuple(names)]).save(run / "metric.safetensors")
    card, text = export(run, tmp_path / "a.pth")
    assert (card["context"], card["judge"]) == (names, None)
    assert card["scores"]["judgements"] is None
    assert "| adapted to |" not in text
    assert "2 epochs" in text
    (row,) = json.loads((run / "scores.json").read_text())["contexts"]
    change = row["intervals"]["change"]
    assert card["scores"]["intervals"] == row["intervals"]
    assert f"95 % interval of {change['low']:+.4f} to {change['high']:+.4f} over the images." in text


def test_score_names_the_judge(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("ref", "x", "y"):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in ("ref", "x", "y")]
    for context, expected in ((["--context", "anna"], "anna"), ([], "pooled")):
        assert main(["score", *images, "--metric", str(run), *context]) == 0
        assert f"alexnet (judgements of {expected})" in capsys.readouterr().out
        assert main(["score", *images, "--metric", str(run), *context, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["judge"], found["context"]) == (expected, None)
        metric = fastdps.load(run, context=expected)
        pixels = [torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1) for image in images]
        distances = [row["distance"] for row in found["images"]]
        assert distances == pytest.approx(sorted(metric(pixels[0], torch.stack(pixels[1:])).tolist()), rel=1e-5)
    assert main(["score", *images, "--metric", str(run), "--context", HOSTILE]) == 0
    assert "\x1b[31m" not in capsys.readouterr().out
    assert main(["score", *images, "--metric", "alexnet"]) == 0
    assert "alexnet (not adapted)" in capsys.readouterr().out
