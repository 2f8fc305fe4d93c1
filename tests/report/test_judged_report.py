"""The report of runs on judgement sets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import fastdps
from fastdps.commands.cli import main
from fastdps.errors import FastDPSError
from fastdps.report.agreement import MOST
from helpers.judged_images import packed_judged

HOSTILE = "<script>alert(1)</script>[/red]"


@pytest.fixture(scope="module")
def scored(tmp_path_factory, weights_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        root = tmp_path_factory.mktemp("report")
        sets = packed_judged(root / "judged", rows=600, images=20, holdout=0.3)
        run = fastdps.train(sets / "train", root / "run", by="judge")
        fastdps.evaluate(run, judgements=sets / "val")
        return run.path, sets


def copy_of(scored, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(scored[0], tmp_path / "run"))


def page_of(run: Path) -> str:
    return fastdps.report(run).read_text(encoding="utf-8")


def test_the_page_shows_judges_intervals_and_wrong_judgements(scored, tmp_path):
    run = copy_of(scored, tmp_path)
    page = page_of(run)
    assert "adapted to the judgements of 3 judges" in page
    assert "Agreement with people" in page
    for name in ("bright", "colour", "random", "all together"):
        assert name in page
    scores = json.loads((run / "scores.json").read_text())["judgements"]["pooled"]["votes"]
    assert f"{100 * scores['after']['value']:.1f}" in page
    assert page.count("data:image/png;base64,") >= 3
    assert "Judgements it still gets wrong" in page
    assert "strength" in page


def test_before_it_is_scored_the_page_says_how(scored, tmp_path):
    run = copy_of(scored, tmp_path)
    for name in ("scores.json", "judged.json"):
        (run / name).unlink()
    page = page_of(run)
    assert re.search(r"fastdps evaluate \S+ --judgements", page)


def test_scores_on_the_training_set_are_named_so(scored, tmp_path, weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    run = copy_of(scored, tmp_path)
    before = page_of(run)
    fastdps.evaluate(run, judgements=scored[1] / "train")
    after = page_of(run)
    warning = "These are the judgements that the run was adapted to."
    assert warning not in before
    assert warning in after


def test_many_judges_are_shortened_in_the_chart_and_complete_in_the_table(scored, tmp_path):
    run = copy_of(scored, tmp_path)
    scores = json.loads((run / "scores.json").read_text())
    one = scores["judgements"]["judges"]["bright"]
    scores["judgements"]["judges"] = {f"judge-{number:03d}": one for number in range(3 * MOST)}
    (run / "scores.json").write_text(json.dumps(scores))
    page = page_of(run)
    chart = page.partition("<table")[0]
    assert all(f"judge-{number:03d}" in page for number in range(3 * MOST))
    assert sum(f"judge-{number:03d}" in chart for number in range(3 * MOST)) <= MOST


def test_names_are_escaped(scored, tmp_path):
    run = copy_of(scored, tmp_path)
    scores = json.loads((run / "scores.json").read_text())
    judges = scores["judgements"]["judges"]
    judges[HOSTILE] = judges.pop("bright")
    (run / "scores.json").write_text(json.dumps(scores))
    judged = json.loads((run / "judged.json").read_text())
    judged["examples"][0]["reference"]["name"] = HOSTILE
    judged["examples"][0]["judges"] = [HOSTILE]
    (run / "judged.json").write_text(json.dumps(judged))
    page = page_of(run)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("file", ["../scores.json", "/etc/passwd", "a/b.png"])
def test_a_picture_outside_the_run_is_refused(scored, tmp_path, file):
    run = copy_of(scored, tmp_path)
    judged = json.loads((run / "judged.json").read_text())
    judged["examples"][0]["closer"]["file"] = file
    (run / "judged.json").write_text(json.dumps(judged))
    with pytest.raises(FastDPSError, match=r"not a valid file name|damaged"):
        page_of(run)


@pytest.mark.parametrize("content", ["[]", "{", '{"format_version": 1}', '{"format_version": 1, "examples": 3}'])
def test_a_damaged_file_is_one_error(scored, tmp_path, capsys, content):
    run = copy_of(scored, tmp_path)
    (run / "judged.json").write_text(content)
    assert main(["report", str(run)]) == 1
    assert "judged.json" in capsys.readouterr().err


def test_the_model_card_names_the_judge_and_the_agreement(scored, tmp_path, weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    file = tmp_path / "colour.pth"
    argv = ["export", str(scored[0]), "--context", "colour", "--format", "lpips", "--out", str(file)]
    assert main(argv) == 0
    card = json.loads((tmp_path / "colour.pth.card.json").read_text())
    votes = json.loads((scored[0] / "scores.json").read_text())["judgements"]["judges"]["colour"]["votes"]
    assert card["judge"] == "colour"
    assert card["scores"]["judgements"]["votes"] == votes
    text = (tmp_path / "colour.pth.card.md").read_text()
    assert "judgements of colour" in text
    assert f"{votes['after']['value']:.4f}" in text


def test_commands_take_a_judge_as_context(scored, tmp_path, weights_dir, monkeypatch, capsys):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    images = sorted((scored[1].parent / "source/images").iterdir())
    argv = ["score", str(images[0]), str(images[1]), "--metric", str(scored[0]), "--context", "bright", "--size", "32"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "bright" in shown
    assert "not adapted" not in shown
