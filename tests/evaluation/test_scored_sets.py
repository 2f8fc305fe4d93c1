"""Scores on sets that the run has seen: recorded, said in the terminal, in the report and on the card, never bold."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import fastdps
from fastdps.commands import cli
from fastdps.contexts.distortions import NAMES
from fastdps.errors import FastDPSError
from fastdps.evaluation.scored_sets import ScoredSet
from fastdps.metric.metric_file import read_metric_file, write_metric_file
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.shards.format import read_manifest
from helpers.made_up_runs import make_run
from helpers.pages import Page

TRAINED_ON = "is the set that the run was trained on. On new images scores are usually lower."
CHOSEN_BY = "is the set that the best epochs were chosen by. On other new images scores are usually lower."


@pytest.fixture(autouse=True)
def _pretrained(monkeypatch, weights_dir):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))


@pytest.fixture(scope="module")
def place(tmp_path_factory, weights_dir) -> Path:
    """A run, the two sets that it has seen, and one that it has not."""
    root = tmp_path_factory.mktemp("place")
    for name, seed in (("seen", 1), ("new", 2)):
        pack(DeadLeaves(12, 32, seed=seed), root / name, PackOptions(size=32, holdout=0.3), workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
        seen = root / "seen"
        fastdps.train(seen / "train", root / "run", contexts="2", validation=seen / "val", epochs=1, variant="lin")
    return root


def change(run: Path, name: str, **values: object) -> None:
    content = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps(content | values))


def evaluate(place: Path, shards: Path, capsys) -> str:
    assert cli.main(["evaluate", str(place / "run"), "--shards", str(shards), "--draws", "1"]) == 0
    return " ".join(capsys.readouterr().out.split())


def page_of(run: Path) -> str:
    fastdps.report(run)
    return Page((run / "report.html").read_text(encoding="utf-8")).text


def test_every_place_says_what_a_run_was_scored_on(place, tmp_path, capsys):
    copy = shutil.copytree(place / "seen/train", tmp_path / "copy")  # the content counts, not the path
    said = evaluate(place, copy, capsys)
    assert "accuracy on distortions of the training images" in said
    assert f"Warning: {copy} {TRAINED_ON}" in said
    (one,) = json.loads((place / "run/scores.json").read_text())["sets"]
    assert one == {
        "kind": "contexts",
        "name": "",
        "path": str(copy),
        "sha256": read_manifest(copy).content_sha256(),
        "samples": 8,
        "image_size": [32, 32],
        "draws": 1,
        "same_as": "training",
    }
    page = page_of(place / "run")
    assert f"{copy} {TRAINED_ON}" in page
    assert "Scored on the training data" in page
    assert "Held-out data" not in page
    card = fastdps.export(place / "run", tmp_path / "m.pth", "lpips", context=_ranking(place)).card_markdown.read_text()
    assert "| accuracy on distortions of the training images |" in card
    assert f"**Warning:** The set of the scores accuracy {TRAINED_ON}" in card
    assert str(copy) not in card

    said = evaluate(place, place / "seen/val", capsys)
    assert f"Warning: {place / 'seen/val'} {CHOSEN_BY}" in said
    assert CHOSEN_BY in page_of(place / "run")

    said = evaluate(place, place / "new/val", capsys)
    assert "accuracy on held-out distortions" in said
    assert "Warning" not in said
    page = page_of(place / "run")
    assert "Held-out data" in page
    assert "usually lower" not in page


def _ranking(place: Path) -> str:
    return ",".join(json.loads((place / "run/config.json").read_text())["rankings"][0])


def scored_set(kind: str, sha256: str, **more: object) -> dict:
    return ScoredSet(kind, more.pop("name", ""), "a/set", sha256, 9, (64, 64), 5, **more).to_dict()


def strong_cells(file: Path) -> list[str]:
    return re.findall(r'<td class="number strong">([\d.]+)</td>', file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("other", [{}, {"contexts": "b"}, {"2afc": "b"}, {"contexts": "b", "2afc": "b", "jnd": "b"}])
def test_runs_scored_on_different_sets_are_not_ranked(tmp_path, other):
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    for run, hashes in zip(runs, ({}, other), strict=True):
        sets = [scored_set(kind, hashes.get(kind, "a")) for kind in ("contexts", "2afc", "jnd")]
        change(run, "scores.json", sets=sets)
        details = json.loads((run / "details.json").read_text())
        change(run, "details.json", held_out={**details["held_out"], "sha256": hashes.get("contexts", "a")})
    fastdps.report(runs, tmp_path / "c.html")
    page = Page((tmp_path / "c.html").read_text(encoding="utf-8")).text
    # Accuracy after adapting and in the worst context; one value is the best of both runs. 2AFC and JND are equal.
    expected = 2 * ("contexts" not in other) + 2 * ("2afc" not in other) + 2 * ("jnd" not in other)
    assert len(strong_cells(tmp_path / "c.html")) == expected
    assert ("their accuracies cannot be compared directly" in page) == ("contexts" in other)
    assert ("different sets of human judgements" in page) == ("2afc" in other)
    assert ("their JND scores cannot be compared directly" in page) == ("jnd" in other)
    assert ("No value is bold" in page) == (len(other) == 3)


def test_scores_of_earlier_versions_have_the_set_of_the_contexts(tmp_path):
    run = make_run(tmp_path / "run", [list(NAMES)])
    details = json.loads((run / "details.json").read_text())
    change(run, "details.json", held_out={**details["held_out"], "sha256": "ab" * 32})  # the training set's
    assert f"data/val {TRAINED_ON}" in page_of(run)


def test_sets_of_bapps_replace_each_other_and_leave_those_of_contexts():
    scores = fastdps.RunScores("alexnet", "lin", "spatial", "fast", None)
    kinds = {"contexts": "a", "2afc": "b", "jnd": "c"}
    contexts, old, new = (ScoredSet(kind, "", "x", sha, 1, None) for kind, sha in kinds.items())
    scores = scores.with_sets([contexts]).with_sets([old]).with_sets([new])
    assert scores.sets == (contexts, new)


def test_a_metric_knows_its_scores_wherever_it_goes(place, tmp_path, capsys):
    run = shutil.copytree(place / "run", tmp_path / "run")
    fastdps.evaluate(run, shards=place / "new/val")
    content = json.loads((run / "scores.json").read_text())
    for row in content["contexts"]:
        metric = fastdps.load(run, row["ranking"])
        (score,) = metric.metric.origin.scores
        assert (score.before, score.after) == (row["baseline_accuracy"], row["adapted_accuracy"])
        assert (score.sha256, score.samples, score.same_as) == (content["sets"][0]["sha256"], 4, None)
        assert str(score) in repr(metric)
        assert str(score) in metric._repr_html_()
        metric.metric.save(tmp_path / "alone.safetensors")
        assert fastdps.load(tmp_path / "alone.safetensors").metric.origin == metric.metric.origin
    images = [str(place / f"{number}.png") for number in (0, 1)]
    for number, path in enumerate(images):
        Image.new("RGB", (32, 32), (90 * number, 0, 0)).save(path)
    assert cli.main(["score", *images, "--metric", str(tmp_path / "alone.safetensors")]) == 0
    assert f"This metric: {score}" in " ".join(capsys.readouterr().out.split())


def test_scores_of_another_metric_are_not_those_of_this_one(place, tmp_path, caplog):
    """The metric file was replaced after it was scored: its scores are not known, and scoring again starts afresh."""
    run = shutil.copytree(place / "run", tmp_path / "run")
    fastdps.evaluate(run, shards=place / "new/val")
    other = PerceptualMetric.load(run / "metric.safetensors")
    other.weights += 1
    other.save(run / "metric.safetensors")
    ranking = other.rankings[0]
    assert fastdps.load(run, ranking).metric.origin.scores == ()
    exported = fastdps.export(run, tmp_path / "m.pth", context=ranking)
    assert exported.card["scores"] is None
    (one,) = json.loads((run / "scores.json").read_text())["sets"]
    change(run, "scores.json", sets=[one, {**one, "kind": "jnd"}])
    fastdps.evaluate(run, shards=place / "seen/val")
    assert "metric.safetensors changed since it was scored" in caplog.text
    assert [one["kind"] for one in json.loads((run / "scores.json").read_text())["sets"]] == ["contexts"]
    (score,) = fastdps.load(run, ranking).metric.origin.scores
    assert score.same_as == "validation"
    (run / "scores.json").write_text("{")
    assert fastdps.load(run, ranking).metric.origin.scores == ()
    assert "the metric has no scores" in caplog.text


@pytest.mark.parametrize("text", ["{}", '[{"kind": "contexts"}]', "[", '[{"after": 2}]'])
def test_scores_in_a_file_that_are_none_are_an_error(place, tmp_path, text):
    metadata, tensors = read_metric_file(place / "run/metric.safetensors")
    write_metric_file(tmp_path / "m.safetensors", {**metadata, "scores": text}, tensors)
    with pytest.raises(FastDPSError, match=r"m\.safetensors is incomplete"):
        PerceptualMetric.load(tmp_path / "m.safetensors")
