"""The judgements that a metric gets wrong: which are chosen, and the files of the run."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

import fastdps
from fastdps.contexts.judgements import judged_pairs
from fastdps.evaluation.judged_examples import CLEAR_SHARE, EXAMPLES, PER_REFERENCE, find_wrong
from fastdps.run_directory import RunDirectory
from fastdps.shards.judgements import JudgementTable, read_names
from helpers.judged_images import packed_judged


def random_judged(rows=400, images=15, seed=0):
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.choice(images, 3, replace=False) for _ in range(rows)])
    votes = rng.integers(0, 6, (rows, 2)).astype(float) + [0, 1]
    table = JudgementTable(*chosen.T, *votes.T, judge=np.full(rows, -1), judges=(), row=np.arange(rows) + 1)
    judged = judged_pairs(table)
    return judged, rng.random(len(judged.pairs)) * 5


def test_examples_are_the_most_confident_wrong_choices_against_clear_majorities():
    judged, d = random_judged()
    found = find_wrong(judged, d, relative=False)
    against = {}
    for row in range(len(judged)):
        share, margin = judged.share[row], d[judged.first[row]] - d[judged.second[row]]
        clear = judged.votes[row] >= found.least_votes and max(share, 1 - share) >= CLEAR_SHARE
        if clear and (margin > 0) != (share > 0.5):
            against[row] = abs(margin)
    assert found.wrong == len(against)
    assert set(found.rows) <= set(against)
    assert [against[row] for row in found.rows] == sorted((against[row] for row in found.rows), reverse=True)
    references = judged.images[found.rows, 0].tolist()
    assert len(found.rows) == EXAMPLES
    assert max(references.count(reference) for reference in references) <= PER_REFERENCE
    best = max(against, key=against.__getitem__)
    assert found.rows[0] == best


def test_a_metric_that_agrees_has_no_examples():
    judged, _ = random_judged(rows=30, images=60)
    d = np.zeros(len(judged.pairs))
    d[judged.first] += judged.votes_b - judged.votes_a
    first, second = judged.first, judged.second
    right = (d[first] > d[second]) == (judged.share > 0.5)
    agreeing = judged.select(right & (judged.share != 0.5))
    places = {tuple(pair): d[number] for number, pair in enumerate(judged.pairs.tolist())}
    own = np.array([places[tuple(pair)] for pair in agreeing.pairs.tolist()])
    found = find_wrong(agreeing, own, relative=False)
    assert found.rows == []
    assert found.wrong == 0
    assert found.searched > 0


@pytest.fixture
def scored(tmp_path, weights_dir, monkeypatch):
    monkeypatch.setenv("FASTDPS_WEIGHTS", str(weights_dir))
    sets = packed_judged(tmp_path / "judged", rows=300, images=20)
    run = fastdps.train(sets / "train", tmp_path / "run", by="judge", prior_strength=1.0)
    fastdps.evaluate(run, judgements=sets / "train")
    return RunDirectory(run.path), sets / "train"


def test_the_files_of_a_run_show_these_judgements(scored):
    run, location = scored
    content = json.loads((run.path / "judged.json").read_text())
    names = read_names(location)
    assert content["set"]["path"] == str(location)
    assert 0 < len(content["examples"]) <= EXAMPLES
    for example in content["examples"]:
        assert example["closer"]["adapted_distance"] > example["farther"]["adapted_distance"]
        assert example["votes_closer"] > example["votes_farther"]
        assert 0.5 <= example["probability"] <= 1
        for role in ("reference", "closer", "farther"):
            image = example[role]
            assert names[image["sample"]] == image["name"]
            assert Image.open(io.BytesIO((run.path / "judged" / image["file"]).read_bytes())).size == (32, 32)


def test_the_next_evaluation_replaces_them_and_overwrite_removes_them(scored):
    run, location = scored
    (run.path / "judged" / "stale.png").write_bytes(b"old")
    fastdps.evaluate(run.path, judgements=location)
    assert not (run.path / "judged" / "stale.png").exists()
    run.clear()
    assert not (run.path / "judged").exists()
    assert not (run.path / "judged.json").exists()


def test_pooled_rows_find_their_pairs():
    judged, d = random_judged(rows=50)
    pooled = judged.pool()
    assert len(find_wrong(pooled, d[: len(pooled.pairs)], relative=True).rows) <= EXAMPLES
    assert dataclasses.replace(pooled).judges == ()
